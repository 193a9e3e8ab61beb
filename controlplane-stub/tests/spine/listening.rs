//! Where the control plane listens, and where it refuses to.

use berth_controlplane::agents::listener::AgentAddress;
use berth_controlplane::daemon::{AgentTls, Config, Daemon};

use crate::client::{site, site_with};

#[tokio::test]
async fn what_would_open_it_to_strangers_is_refused() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 6] = [
        (|c| c.listen = "0.0.0.0:0".parse().unwrap(), "--access-key"),
        (
            |c| {
                c.agent_listen = "0.0.0.0:0".parse().unwrap();
                c.agent_tls = AgentTls::Off;
            },
            "without TLS only loopback",
        ),
        (
            |c| {
                c.agent_listen = "unix:/nowhere/x".parse().unwrap();
                c.agent_tls = AgentTls::On;
            },
            "a unix socket speaks no TLS",
        ),
        (|c| c.account = "1".to_owned(), "twelve digits"),
        (|c| c.region = "Mars!".to_owned(), "--region"),
        (
            |c| {
                c.agent_tls = AgentTls::On;
                c.agent_names = vec!["not a name".to_owned(), "é".to_owned()];
            },
            "neither a DNS name nor an IP address",
        ),
    ];
    for (change, text) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::local(directory.path());
        change(&mut config);
        let error = Daemon::start(config).await.unwrap_err();
        assert!(format!("{error:#}").contains(text), "{error:#}");
    }
}

#[tokio::test]
async fn a_second_start_on_the_same_data_is_refused_by_name() {
    let site = site().await;
    let error = Daemon::start(Config::local(site.directory.path())).await.unwrap_err();
    assert!(format!("{error:#}").contains("store.redb is in use by another process"), "{error:#}");
}

#[tokio::test]
async fn a_unix_socket_serves_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let sockets = tempfile::tempdir().unwrap();
    let path = sockets.path().join("agents.sock");
    // A socket that a crash left is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = AgentAddress::Unix(path.clone());
    let site = site_with(|config| {
        config.agent_listen = address.clone();
        config.dev = true;
    })
    .await;
    assert_eq!(site.running.agent_addr, address);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = berth_proto::v1::control_plane_client::ControlPlaneClient::new(channel);
    let arn = client
        .register(crate::client::registration("host-a"))
        .await
        .unwrap()
        .into_inner()
        .container_instance_arn;
    site.running.state.simulated.as_ref().unwrap().attach("default", &arn).await.unwrap();
}
