//! What a worker that makes no progress is doing, as far as `/proc` tells. Ends no process.

/// What a worker that makes no progress is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standstill {
    /// A thread is inside the kernel, where no signal reaches it: it waits for a disk, a network file system
    /// or a GPU. `place` is the kernel's name for it, if the kernel tells.
    InKernel { place: String },
    /// A signal has stopped it.
    Stopped,
    /// Its threads wait in system calls.
    Waiting,
    /// A thread computes.
    Running,
}

/// Looks at all threads of the process.
pub(super) fn standstill(pid: u32) -> Standstill {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut found = Standstill::Waiting;
    for task in tasks {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        match thread_state(&read("stat")) {
            Some('D') => {
                let place = read("wchan");
                let is_known = place.chars().any(char::is_alphabetic);
                return Standstill::InKernel { place: if is_known { place } else { "unknown".into() } };
            }
            Some('T') => found = Standstill::Stopped,
            Some('R') if found == Standstill::Waiting => found = Standstill::Running,
            _ => {}
        }
    }
    found
}

/// The state in a thread's `stat`. The thread's name before it may have any characters.
fn thread_state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn the_state_is_found_behind_any_name() {
        assert_eq!(thread_state("12 (a) R (b)) D 1 2"), Some('D'));
        assert_eq!(thread_state(""), None);
    }

    #[test]
    fn a_process_that_waits_and_one_that_is_stopped_are_told_apart() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let until = |expected| while standstill(child.id()) != expected {};
        until(Standstill::Waiting);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
        until(Standstill::Stopped);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
