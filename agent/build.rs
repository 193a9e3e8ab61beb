//! Compiles the program that holds network namespaces, which the agent carries with it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

const SOURCE: &str = "pause/pause.rs";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error={SOURCE}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let var = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: build with cargo"));
    let out = PathBuf::from(var("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(var("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-type=bin", "--crate-name=pause", "--target", &var("TARGET")?]);
    // The same bytes from every build, and nothing but the program in them.
    for option in [
        "panic=abort",
        "opt-level=z",
        "strip=symbols",
        "relocation-model=static",
        "link-arg=-static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-Wl,--build-id=none",
        "link-arg=-Wl,-n",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let done = rustc.arg("-o").arg(&out).arg(SOURCE).status().map_err(|error| error.to_string())?;
    if done.success() { Ok(()) } else { Err(format!("the compiler ended with {done}")) }
}
