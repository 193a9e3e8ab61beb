//! Generates the protocol's Rust code from `berth/v1/*.proto` with a compiler written in Rust, so
//! that no system `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["berth/v1/agent.proto"];
    println!("cargo:rerun-if-changed=berth");
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".berth.v1.Frame")
        .skip_debug(["berth.v1.RoleCredentials"])
        .compile_fds(descriptors)?;
    Ok(())
}
