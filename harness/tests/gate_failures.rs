//! The supervisor's own system calls fail, each with each errno: every call of the target is answered all the same,
//! and what could not be followed is reported.

#![expect(clippy::unwrap_used, reason = "a test panics at the first unexpected result")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::gate::{CallDecision, CallHandler, FilterOptions, GateFailure, InterceptedCall};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::libc::{self, c_long};

use support::c_target;
use support::machine::{GATE, missing};
use support::sys::fail_own_calls;
use support::watched_sandbox::WatchedSandbox;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(trials![
        missing(&GATE);
        every_call_is_answered_whatever_fails_in_the_supervisor,
        a_failure_of_the_supervisor_is_reported_and_an_error_of_the_target_is_not,
    ] as Vec<Trial>)
}

/// Performs every call. From the second one on, a system call of the supervisor fails.
struct FailingSupervisor {
    call: c_long,
    errno: Errno,
    decided: u32,
    failures: Vec<GateFailure>,
}

impl CallHandler for FailingSupervisor {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        self.decided += 1;
        // The supervisor decides on its own thread.
        if self.decided == 2 {
            fail_own_calls(self.call, self.errno);
        }
        CallDecision::Perform
    }

    fn on_failure(&mut self, failure: GateFailure) {
        self.failures.push(failure);
    }
}

/// Runs a program that changes files in the given ways, and ends it when the supervisor fails, as a harness does.
/// Returns what the supervisor reported. Fails if the program has not ended after a minute.
fn failures_of(form: &str, call: c_long, errno: Errno) -> Vec<GateFailure> {
    let setup = WatchedSandbox::new();
    setup.create_files_of_every_type();
    let program = c_target::compile("forms.c", &["-w"]).unwrap();
    let supervisor = FailingSupervisor { call, errno, decided: 0, failures: Vec::new() };
    let supervisor = Arc::new(Mutex::new(supervisor));
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while supervisor.lock().unwrap().failures.is_empty() && !has_ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
            setup.sandbox.kill_all().unwrap();
        });
        setup.run(&[program.to_str().unwrap(), form], &FilterOptions::default(), &supervisor);
        has_ended.store(true, Ordering::SeqCst);
    });
    supervisor.lock().unwrap().failures.clone()
}

fn every_call_is_answered_whatever_fails_in_the_supervisor() {
    let calls = [
        libc::SYS_ioctl,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_statx,
        libc::SYS_fcntl,
        libc::SYS_lseek,
        libc::SYS_pwritev2,
        libc::SYS_prlimit64,
        libc::SYS_fstatfs,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_read,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_copy_file_range,
        libc::SYS_poll,
        libc::SYS_ppoll,
    ];
    let errnos = [Errno::EPERM, Errno::EMFILE, Errno::ENOMEM, Errno::EIO, Errno::EINTR, Errno::EAGAIN];
    let forms = ["create_and_truncate", "copy_file_range_forms", "renames", "paths_through_proc"];
    for (number, call) in calls.into_iter().enumerate() {
        for (turn, errno) in errnos.into_iter().enumerate() {
            // The standard library repeats these calls until they are not interrupted.
            if errno == Errno::EINTR && [libc::SYS_read, libc::SYS_openat].contains(&call) {
                continue;
            }
            failures_of(forms[(number + turn) % forms.len()], call, errno);
        }
    }
}

fn a_failure_of_the_supervisor_is_reported_and_an_error_of_the_target_is_not() {
    for (call, errno, form) in [
        (libc::SYS_ioctl, Errno::EPERM, "writes"),
        (libc::SYS_pidfd_getfd, Errno::EMFILE, "writes"),
        (libc::SYS_pidfd_getfd, Errno::EPERM, "writes"),
        (libc::SYS_process_vm_readv, Errno::EPERM, "writes"),
        (libc::SYS_process_vm_readv, Errno::ENOMEM, "writes"),
        (libc::SYS_openat, Errno::EMFILE, "create_and_truncate"),
        (libc::SYS_statx, Errno::ENOMEM, "create_and_truncate"),
        (libc::SYS_prlimit64, Errno::EPERM, "create_and_truncate"),
    ] {
        let failures = failures_of(form, call, errno);
        assert!(!failures.is_empty(), "{form}: call {call} failed with {errno} and nothing was reported");
    }
    // The target makes wrong calls of all kinds in these.
    for form in ["writes", "vectored_writes", "wrong_paths", "renames", "removals", "openat2_arguments"] {
        // No thread of a supervisor makes this call.
        let failures = failures_of(form, libc::SYS_reboot, Errno::EPERM);
        assert_eq!(failures, [], "{form}");
    }
}
