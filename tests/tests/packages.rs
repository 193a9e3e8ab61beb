//! The packages on a host with systemd.
fn main() {}
