//! Runs the built command. Must not know what it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::time::{Duration, Instant};

/// Path of the built command.
pub(crate) const TRAINWRECK: &str = env!("CARGO_BIN_EXE_trainwreck");

/// Top directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The small trainer `examples/saver.rs`. Cargo builds it with all tests, but not with a single test program:
/// then this builds it.
pub(crate) fn saver() -> PathBuf {
    static BUILD: Once = Once::new();
    let dir = Path::new(TRAINWRECK).parent().unwrap();
    let path = dir.join("examples/saver");
    BUILD.call_once(|| {
        if !path.exists() {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
            cargo.current_dir(workspace()).args([
                "build",
                "--quiet",
                "-p",
                "trainwreck",
                "--example",
                "saver",
            ]);
            cargo.args(dir.ends_with("release").then_some("--release"));
            assert!(cargo.status().unwrap().success(), "cargo could not build `saver`");
        }
    });
    path
}

/// Runs the command to its end.
pub(crate) fn run_trainwreck(args: &[&str]) -> Output {
    Command::new(TRAINWRECK).args(args).output().unwrap()
}

/// What a process printed: standard output, then standard error.
pub(crate) fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until the condition holds, at most a minute.
pub(crate) fn wait_for(condition_name: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {condition_name}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
