//! The faults that alter a file system call: `fail-call`, `short-call`, `delay-call`, `swap-file`,
//! `sweep-errno`.

use std::time::Duration;

use crate::effect::call_injection::{CallInjection, CallSite, Replacement};
use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::operation::{CallKind, Errno};
use crate::units::TimeSpan;
use crate::yaml::spanned::Spanned;

/// The mechanism that holds and alters calls.
pub(super) const CALL_MECHANISM: &str = "syscall-gate";

fault!(
    /// A call that fails.
    FailCallDraft {
        /// The errnos that the call fails with, one trial each.
        errno: Spanned<Vec<Errno>>,
        /// The call is done before it returns the error, as when only its result is lost. Default: false.
        #[serde(default)]
        performed: bool,
    }
);
fault!(
    /// A call that transfers too few bytes.
    ShortCallDraft {
        /// Number of bytes that are transferred, at least 1.
        bytes: Spanned<u32>,
    }
);
fault!(
    /// A slow call.
    DelayCallDraft {
        /// How long the call is delayed.
        time: TimeSpan,
    }
);
fault!(
    /// A replaced file.
    SwapFileDraft {
        /// What the path refers to instead.
        by: Replacement,
    }
);
fault!(
    /// All errnos of all calls.
    SweepErrnoDraft {}
);

/// Makes a call fail, one trial per errno.
#[derive(Debug, Clone)]
pub struct FailCall {
    /// Never empty.
    pub errnos: Vec<Errno>,
    /// The call is done before it returns the error.
    pub performed: bool,
}

/// Makes a read or a write transfer only this many bytes.
#[derive(Debug, Clone)]
pub struct ShortCall {
    /// At least 1.
    pub bytes: u32,
}

/// Delays a call.
#[derive(Debug, Clone)]
pub struct DelayCall {
    /// For how long.
    pub delay: Duration,
}

/// Replaces the file at the call's path just before the call.
#[derive(Debug, Clone)]
pub struct SwapFile {
    /// What the path refers to instead.
    pub replacement: Replacement,
}

/// Makes each call fail with each plausible errno, transient and persistent, one trial each.
#[derive(Debug, Clone)]
pub struct SweepErrno;

impl CheckEffect for FailCallDraft {
    type Checked = FailCall;

    fn check(&self, checker: &mut Checker) -> FailCall {
        checker.require_not_empty(&self.errno, "`errno` is empty");
        FailCall { errnos: self.errno.value.clone(), performed: self.performed }
    }
}

impl CheckEffect for ShortCallDraft {
    type Checked = ShortCall;

    fn check(&self, checker: &mut Checker) -> ShortCall {
        ShortCall { bytes: checker.require_positive(&self.bytes, "bytes") }
    }
}

impl CheckEffect for DelayCallDraft {
    type Checked = DelayCall;

    fn check(&self, _checker: &mut Checker) -> DelayCall {
        DelayCall { delay: self.time.0 }
    }
}

impl CheckEffect for SwapFileDraft {
    type Checked = SwapFile;

    fn check(&self, _checker: &mut Checker) -> SwapFile {
        SwapFile { replacement: self.by }
    }
}

impl CheckEffect for SweepErrnoDraft {
    type Checked = SweepErrno;

    fn check(&self, _checker: &mut Checker) -> SweepErrno {
        SweepErrno
    }
}

/// What all faults of this file tell about themselves, and what each of them adds.
macro_rules! call_fault {
    ($name:ident { $($own:item)* }) => {
        impl EffectSpec for $name {
            fn describe(&self) -> String {
                "a call".into()
            }

            fn needed_mechanism(&self) -> Option<&'static str> {
                Some(CALL_MECHANISM)
            }

            fn is_at_call(&self) -> bool {
                true
            }

            $($own)*
        }
    };
}

call_fault!(FailCall {
    fn is_momentary(&self) -> bool {
        true
    }

    fn makes_calls_fail(&self) -> bool {
        true
    }

    fn call_injections(&self, site: &CallSite) -> Vec<CallInjection> {
        let fail = |errno: &Errno| CallInjection::Fail {
            errno: *errno,
            performed: self.performed,
            persistent: site.is_persistent,
        };
        self.errnos.iter().map(fail).collect()
    }
});

call_fault!(ShortCall {
    fn is_momentary(&self) -> bool {
        true
    }

    fn fits_call(&self, kind: CallKind) -> bool {
        matches!(kind, CallKind::Read | CallKind::Write)
    }

    fn call_injections(&self, _site: &CallSite) -> Vec<CallInjection> {
        vec![CallInjection::Short { bytes: self.bytes }]
    }
});

call_fault!(DelayCall {
    fn is_momentary(&self) -> bool {
        true
    }

    fn call_injections(&self, _site: &CallSite) -> Vec<CallInjection> {
        vec![CallInjection::Delay { duration: self.delay }]
    }
});

call_fault!(SwapFile {
    fn is_momentary(&self) -> bool {
        true
    }

    fn fits_call(&self, kind: CallKind) -> bool {
        kind.takes_path()
    }

    fn call_injections(&self, _site: &CallSite) -> Vec<CallInjection> {
        vec![CallInjection::Swap { by: self.replacement }]
    }
});

call_fault!(SweepErrno {
    fn makes_calls_fail(&self) -> bool {
        true
    }

    fn call_injections(&self, site: &CallSite) -> Vec<CallInjection> {
        let errnos = site.kind.map(CallKind::plausible_errnos).unwrap_or_default();
        let fail =
            |errno, persistent| CallInjection::Fail { errno, performed: false, persistent };
        errnos.into_iter().flat_map(|errno| [fail(errno, false), fail(errno, true)]).collect()
    }
});
