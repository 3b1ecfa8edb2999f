//! Runs cargo, passes on the lines of its standard error, and ends it with everything that it has started if
//! the command is interrupted. Does not know what is built.

use std::io::{BufRead, BufReader, Error};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sandbox::is_interrupted;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How cargo ended.
pub(super) struct CargoEnd {
    pub(super) status: ExitStatus,
    /// The first line of its standard error that begins with `error`.
    first_error: Option<String>,
}

impl CargoEnd {
    /// Why it failed, in one line.
    pub(super) fn reason(&self) -> String {
        self.first_error.clone().unwrap_or_else(|| format!("cargo ended with {}", self.status))
    }
}

/// Runs cargo to its end, and calls `on_line` with each line of its standard error. If the command is
/// interrupted, cargo is killed, which is its status then.
pub(super) fn run_cargo(cargo: &mut Command, on_line: &dyn Fn(&str)) -> Result<CargoEnd, Error> {
    // Cargo and its compilers form a group, which can be ended as a whole. A terminal's Ctrl-C does not reach
    // it, but the harness.
    let mut child =
        cargo.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().map(BufReader::new);
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in stderr.into_iter().flat_map(|stderr| stderr.split(b'\n')).map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let mut first_error = None;
    loop {
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(line) => {
                on_line(&line);
                if first_error.is_none() && line.starts_with("error") {
                    first_error = Some(line);
                }
            }
            Err(RecvTimeoutError::Timeout) if is_interrupted() => {
                // It may have ended in this moment.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                child.wait()?;
                return Ok(CargoEnd { status: ExitStatus::from_raw(nix::libc::SIGKILL), first_error });
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    reader.join().map_err(|_| Error::other("the reader of its output failed"))?;
    Ok(CargoEnd { status: child.wait()?, first_error })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn run_script(script: &str) -> (CargoEnd, Vec<String>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let lines = RefCell::new(Vec::new());
        let end = run_cargo(&mut command, &|line| lines.borrow_mut().push(line.to_owned())).unwrap();
        (end, lines.into_inner())
    }

    #[test]
    fn each_line_of_a_build_is_passed_on_and_the_first_error_is_the_reason() {
        let (end, lines) = run_script("echo '   Compiling x' >&2");
        assert!(end.status.success());
        assert_eq!(lines, ["   Compiling x"]);
        let (end, lines) =
            run_script("echo warning: a >&2; echo 'error[E1]: b' >&2; echo error: c >&2; exit 101");
        assert_eq!(end.reason(), "error[E1]: b");
        assert_eq!(lines.len(), 3);
        assert!(run_script("exit 101").0.reason().contains("101"));
    }
}
