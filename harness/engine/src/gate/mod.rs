//! Intercepts the file system calls of a process tree with seccomp user notification (seccomp_unotify(2)) and
//! can alter them. Knows none of its neighbours.
//!
//! The caller starts a program behind the filter of `build_filter`. It passes the filter's listener and a
//! `CallHandler` to `serve_notifications`. The supervisor decodes each intercepted call (`calls`) and
//! resolves its paths and descriptors (`resolve_call`). If the call touches a watched mount, the handler
//! decides (`handler`): the call continues in the kernel, fails, or is performed here on behalf of the target
//! (`perform`), which makes its result known. Calls that touch no watched mount continue. So do calls that
//! change attributes (`CallEffect::ChangingAttributes`): their results depend on the target's user namespace; and
//! connections (`connection_call`), which the handler is told about if the filter intercepts them.
//!
//! If the filter intercepts calls for the time (`clock_call`), the target gets the time and waits by the clock of the
//! handler (`wall_clock`, `clock_waits`). The vDSO of each program is changed (`vdso`), so that it makes such calls.
//!
//! If the target is under rules of Landlock, calls that depend on them are made under the same rules.
//!
//! Stores into shared mappings are not calls: `CallEffect::Mapped` reports such mappings. Calls of other ABIs
//! (32-bit, x32), io_uring and libaio fail with ENOSYS and are reported (`CallEffect::Refused`). If the supervisor
//! itself fails, the handler gets a `GateFailure`: what the target did from then on is not known.

mod answering;
mod attribute_calls;
mod call_rules;
mod calls;
mod clock_call;
mod clock_shift;
mod clock_waits;
mod connection_call;
mod connection_log;
mod filter;
mod follow_error;
mod group_membership;
mod handler;
mod open_file;
mod path_walk;
mod perform;
mod resolve_call;
mod stat;
mod supervisor;
mod sys;
mod target_thread;
mod thread_cache;
mod thread_status;
mod vdso;
mod wall_clock;

/// What a call does. The words are those of scenario files.
pub use scenarios::CallKind;

pub use call_rules::{CallRule, CallRules, RuleMatch};
pub use clock_shift::ClockShift;
pub use connection_log::{ConnectionAttempt, ConnectionLog};
pub use filter::{FilterOptions, build_filter};
pub use follow_error::GateFailure;
pub use handler::{
    CallDecision, CallEffect, CallHandler, CarriedOut, DirectoryEntry, InterceptedCall, Swap, WriteSync,
};
pub use stat::{FileId, WatchedMounts, file_id_of};
pub use supervisor::{SupervisorThread, serve_notifications};
