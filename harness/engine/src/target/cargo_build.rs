//! Runs cargo, and ends it with everything that it has started if the command is interrupted. Does not know
//! what is built.

use std::io::{Error, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sandbox::is_interrupted;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How cargo ended.
pub(super) struct CargoEnd {
    pub(super) status: ExitStatus,
    /// What it wrote to standard error.
    pub(super) stderr: String,
}

/// Runs cargo to its end. If the command is interrupted, cargo is killed, which is its status then.
pub(super) fn run_cargo(cargo: &mut Command) -> Result<CargoEnd, Error> {
    // Cargo and its compilers form a group, which can be ended as a whole. A terminal's Ctrl-C does not reach
    // it, but the harness.
    let mut child = cargo.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stderr.map(|mut stderr| stderr.read_to_end(&mut bytes));
        read.transpose().map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if is_interrupted() {
            // It may have ended in this moment.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait()?;
            break ExitStatus::from_raw(nix::libc::SIGKILL);
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let stderr = reader.join().map_err(|_| Error::other("the reader of its output failed"))??;
    Ok(CargoEnd { status, stderr })
}
