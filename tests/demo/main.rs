//! `berth-demo`: the one program in the image that the tests and the quick start run as a task.
//!
//! std alone and linked statically, so that the image is this file's binary and nothing else. It
//! is process 1 of its container, hence installs a handler for SIGTERM and SIGINT (the kernel
//! drops signals of process 1 that have none).
#![expect(clippy::disallowed_methods, reason = "no runtime here: a thread that sleeps is what is wanted")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const USAGE: &str = "\
usage: berth-demo [COMMAND]
  serve [--port P]           HTTP: / /env /limits /cgroup /metadata[/PATH]; P: $PORT, else 8080 (default command)
  sleep SECS                 exit 0 after that
  exit CODE [--after MS]     exit with CODE
  ignore-term                stay until SIGKILL
  eat-memory MIB             touch that much memory, then stay
  burn-cpu SECS [--after SECS]  keep one CPU busy, from then on for so long; print the CPU time had then
  connect HOST PORT [--for MS]   send a GET /, print the answer; try again that long
  listen-udp PORT            send every datagram back
  print-env                  the environment, sorted
  healthy [--after MS] [--file PATH]   health check: exit 0 once process 1 is that old and the file exists
  write PATH TEXT            write a file; `remove PATH` removes it";

mod libc {
    pub const SIGINT: i32 = 2;
    pub const SIGTERM: i32 = 15;
    pub const SIG_IGN: usize = 1;
    pub const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;

    #[repr(C)]
    pub struct Timespec {
        pub sec: i64,
        pub nsec: i64,
    }

    unsafe extern "C" {
        pub fn signal(signum: i32, handler: usize) -> usize;
        pub fn _exit(code: i32) -> !;
        pub fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
}

extern "C" fn leave(_signal: i32) {
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(0) }
}

fn on_term(handler: usize) {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler is SIG_IGN or `leave`, which only calls an async-signal-safe function.
        unsafe { libc::signal(signal, handler) };
    }
}

fn main() -> ExitCode {
    let leave: extern "C" fn(i32) = leave;
    on_term(leave as usize);
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("berth-demo: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode, String> {
    let at = |i: usize| args.get(i).map(String::as_str).ok_or(USAGE.to_owned());
    match args.first().map_or("serve", String::as_str) {
        "serve" => {
            let default = env::var("PORT").ok().map_or(Ok(8080), |p| number(&p))?;
            serve(option(args, "--port")?.unwrap_or(default))
        }
        "sleep" => {
            thread::sleep(Duration::from_secs_f64(number(at(1)?)?));
            Ok(ExitCode::SUCCESS)
        }
        "exit" => {
            thread::sleep(Duration::from_millis(option(args, "--after")?.unwrap_or(0)));
            Ok(ExitCode::from(number::<u8>(at(1)?)?))
        }
        "ignore-term" => {
            on_term(libc::SIG_IGN);
            println!("ignoring SIGTERM");
            stay()
        }
        "eat-memory" => eat_memory(number(at(1)?)?),
        "burn-cpu" => burn_cpu(number(at(1)?)?, option(args, "--after")?.unwrap_or(0.0)),
        "connect" => connect(at(1)?, number(at(2)?)?, option(args, "--for")?.unwrap_or(0)),
        "listen-udp" => listen_udp(number(at(1)?)?),
        "print-env" => {
            sorted_env().iter().for_each(|(key, value)| println!("{key}={value}"));
            Ok(ExitCode::SUCCESS)
        }
        "healthy" => healthy(option(args, "--after")?, option(args, "--file")?),
        "write" => done(fs::write(at(1)?, at(2)?)),
        "remove" => done(fs::remove_file(at(1)?)),
        _ => Err(USAGE.to_owned()),
    }
}

// === arguments ===

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number of that kind\n{USAGE}"))
}

fn option<T: std::str::FromStr>(args: &[String], name: &str) -> Result<Option<T>, String> {
    let Some(at) = args.iter().position(|a| a == name) else { return Ok(None) };
    number(args.get(at + 1).map_or("", String::as_str)).map(Some)
}

fn done(result: std::io::Result<()>) -> Result<ExitCode, String> {
    result.map(|()| ExitCode::SUCCESS).map_err(|e| e.to_string())
}

fn stay() -> ! {
    loop {
        thread::park();
    }
}

fn sorted_env() -> BTreeMap<String, String> {
    env::vars_os()
        .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
        .collect()
}

// === the HTTP server ===

fn serve(port: u16) -> Result<ExitCode, String> {
    // Both families where there is IPv6.
    let listener = TcpListener::bind(("::", port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        .map_err(|e| format!("port {port}: {e}"))?;
    println!("berth-demo serves on {}", listener.local_addr().map_err(|e| e.to_string())?);
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // A client that went away concerns nobody.
            let _ = answer(stream);
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or("");
    let (status, kind, body) = match path {
        "/" => ("200 OK", "text/plain", hello()),
        "/env" => ("200 OK", "application/json", json_object(&sorted_env())),
        "/limits" => ("200 OK", "application/json", limits()),
        "/cgroup" => ("200 OK", "text/plain", read("/proc/self/cgroup").unwrap_or_default()),
        _ if path == "/metadata" || path.starts_with("/metadata/") => {
            match metadata(&path["/metadata".len()..]) {
                Ok(body) => ("200 OK", "application/json", body),
                Err(why) => ("502 Bad Gateway", "text/plain", why + "\n"),
            }
        }
        _ => ("404 Not Found", "text/plain", "no such page\n".to_owned()),
    };
    let length = body.len();
    write!(
        &stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn hello() -> String {
    let hostname = read("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut text = format!("hello from berth-demo on {}\n", hostname.trim());
    for (key, value) in sorted_env() {
        if key.starts_with("ECS_") || key.starts_with("AWS_CONTAINER_") || key == "AWS_EXECUTION_ENV" {
            let _ = writeln!(text, "{key}={value}");
        }
    }
    text
}

/// What the task metadata endpoint says under that path.
fn metadata(path: &str) -> Result<String, String> {
    let base =
        env::var("ECS_CONTAINER_METADATA_URI_V4").map_err(|_| "ECS_CONTAINER_METADATA_URI_V4 is not set")?;
    let rest = base.strip_prefix("http://").ok_or_else(|| format!("{base} is no http address"))?;
    let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let answer = get(&address, &format!("/{prefix}{path}"), Duration::from_secs(5))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no head")?;
    if head.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(answer) }
}

/// One GET; HTTP/1.0, so that the answer ends with the connection.
fn get(address: &str, path: &str, timeout: Duration) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("{address}: {e}");
    let to = address.to_socket_addrs().map_err(failed)?.next().ok_or("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&to, timeout).map_err(failed)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(failed)?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).map_err(failed)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

// === limits, as the kernel has them ===

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The number in a cgroup file; nothing for "max" and the like, and for what v1 takes as no limit.
fn cgroup_number(path: &str) -> Option<i64> {
    let value: i64 = read(path)?.trim().parse().ok()?;
    (0..i64::MAX / 2).contains(&value).then_some(value)
}

/// The limits of this container's own cgroup, and of memory also the narrowest one above it (the task's).
fn limits() -> String {
    let mut found: Vec<(&str, Option<i64>)> = Vec::new();
    let root = "/sys/fs/cgroup";
    let version = if fs::exists(format!("{root}/cgroup.controllers")).unwrap_or(false) { 2 } else { 1 };
    found.push(("cgroupVersion", Some(version)));
    if version == 2 {
        let text = read(&format!("{root}/cpu.max")).unwrap_or_default();
        let mut cpu = text.split_whitespace().map(|word| word.parse().ok());
        found.push(("memoryLimitBytes", cgroup_number(&format!("{root}/memory.max"))));
        found.push(("memorySoftLimitBytes", cgroup_number(&format!("{root}/memory.low"))));
        found.push(("cpuQuotaUs", cpu.next().flatten()));
        found.push(("cpuPeriodUs", cpu.next().flatten()));
        found.push(("cpuWeight", cgroup_number(&format!("{root}/cpu.weight"))));
        found.push(("pidsLimit", cgroup_number(&format!("{root}/pids.max"))));
    } else {
        let stat = read(&format!("{root}/memory/memory.stat")).unwrap_or_default();
        let narrowest = stat.lines().find_map(|l| l.strip_prefix("hierarchical_memory_limit "));
        let narrowest = narrowest.and_then(|n| n.parse().ok()).filter(|n| *n < i64::MAX / 2);
        found.push(("memoryLimitBytes", cgroup_number(&format!("{root}/memory/memory.limit_in_bytes"))));
        found.push((
            "memorySoftLimitBytes",
            cgroup_number(&format!("{root}/memory/memory.soft_limit_in_bytes")),
        ));
        found.push(("memoryNarrowestBytes", narrowest));
        found.push(("cpuQuotaUs", cgroup_number(&format!("{root}/cpu/cpu.cfs_quota_us"))));
        found.push(("cpuPeriodUs", cgroup_number(&format!("{root}/cpu/cpu.cfs_period_us"))));
        found.push(("cpuShares", cgroup_number(&format!("{root}/cpu/cpu.shares"))));
        found.push(("pidsLimit", cgroup_number(&format!("{root}/pids/pids.max"))));
    }
    let members: Vec<String> = found
        .into_iter()
        .map(|(name, value)| format!("\"{name}\":{}", value.map_or("null".to_owned(), |v| v.to_string())))
        .collect();
    format!("{{{}}}\n", members.join(","))
}

fn json_object(values: &BTreeMap<String, String>) -> String {
    let members: Vec<String> =
        values.iter().map(|(k, v)| format!("{}:{}", json_string(k), json_string(v))).collect();
    format!("{{{}}}\n", members.join(","))
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

// === the other commands ===

fn eat_memory(mib: usize) -> ! {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for n in 1..=mib {
        // Not zeroes: those would stay unmapped.
        eaten.push(vec![0xbe; 1 << 20]);
        if n % 16 == 0 || n == mib {
            println!("holding {n} MiB");
        }
    }
    let _held = std::hint::black_box(eaten);
    stay()
}

/// CPU time of this process so far; what its maker used before the exec counts too.
fn cpu_ms() -> i64 {
    let mut time = libc::Timespec { sec: 0, nsec: 0 };
    // SAFETY: the pointer is to a live timespec of the kernel's layout for 64-bit machines.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.sec * 1000 + time.nsec / 1_000_000
}

fn burn_cpu(seconds: f64, after: f64) -> Result<ExitCode, String> {
    keep_busy(after);
    let (began, had_before) = (Instant::now(), cpu_ms());
    keep_busy(seconds);
    println!("cpu_ms={} wall_ms={}", cpu_ms() - had_before, began.elapsed().as_millis());
    Ok(ExitCode::SUCCESS)
}

fn keep_busy(seconds: f64) {
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        for n in 0..10_000_u64 {
            std::hint::black_box(n);
        }
    }
}

fn connect(host: &str, port: u16, for_ms: u64) -> Result<ExitCode, String> {
    let began = Instant::now();
    loop {
        match get(&format!("{host}:{port}"), "/", Duration::from_secs(2)) {
            Ok(answer) => {
                println!("{answer}");
                return Ok(ExitCode::SUCCESS);
            }
            Err(why) if began.elapsed() >= Duration::from_millis(for_ms) => {
                eprintln!("berth-demo: {why}");
                return Ok(ExitCode::FAILURE);
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn listen_udp(port: u16) -> Result<ExitCode, String> {
    let failed = |e: std::io::Error| format!("udp port {port}: {e}");
    let socket = UdpSocket::bind(("0.0.0.0", port)).map_err(failed)?;
    println!("berth-demo answers on udp {port}");
    let mut buffer = [0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).map_err(failed)?;
        socket.send_to(&buffer[..length], from).map_err(failed)?;
    }
}

/// Age of process 1 from the kernel, so that no state of our own is needed.
fn age_of_init_ms() -> Option<u64> {
    let stat = read("/proc/1/stat")?;
    // Field 22, counted behind the name in brackets; in hundredths of a second, like uptime's fraction.
    let started: f64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let uptime: f64 = read("/proc/uptime")?.split(' ').next()?.parse().ok()?;
    Some(((uptime - started / 100.0).max(0.0) * 1000.0) as u64)
}

fn healthy(after_ms: Option<u64>, file: Option<String>) -> Result<ExitCode, String> {
    let age = age_of_init_ms().ok_or("/proc does not tell the age of process 1")?;
    let old_enough = after_ms.is_none_or(|after| age >= after);
    let there = file.is_none_or(|path| fs::exists(path).unwrap_or(false));
    println!("process 1 is {age} ms old: {}", if old_enough && there { "healthy" } else { "unhealthy" });
    Ok(if old_enough && there { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
