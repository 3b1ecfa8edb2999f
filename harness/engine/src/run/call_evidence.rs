//! The evidence of a fault at a system call, from what the gate did. Pure: decides nothing and injects nothing.

use nix::errno::Errno;
use scenarios::CallInjection;

use crate::gate::CarriedOut;

/// A fault that was decided at a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DecidedCall {
    /// Which call it is, in words.
    pub(super) call: String,
    /// The bytes that a read or write asked for.
    pub(super) requested_bytes: Option<u64>,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallEvidence {
    /// The fault was effective; what was done.
    Effective(String),
    /// It was not; why.
    Ineffective(String),
}

/// What was done for an injection at a call.
pub(super) fn call_evidence(
    injection: &CallInjection,
    decided: &DecidedCall,
    done: CarriedOut,
) -> CallEvidence {
    let DecidedCall { call, requested_bytes } = decided;
    match (injection, done) {
        (_, CarriedOut::NotPossible) => {
            CallEvidence::Ineffective(format!("{call}: only the kernel can perform it"))
        }
        (CallInjection::KillBefore, _) => CallEvidence::Effective(format!("killed before {call}")),
        (CallInjection::KillInside { .. }, CarriedOut::Performed(result)) => {
            CallEvidence::Effective(match result {
                Ok(moved) => format!("killed after {moved} bytes of {call}"),
                Err(errno) => format!("killed when {call} had failed with {}", name(errno)),
            })
        }
        (CallInjection::KillAfter, CarriedOut::Performed(result)) => CallEvidence::Effective(match result {
            Ok(_) => format!("killed after {call}"),
            Err(errno) => format!("killed when {call} had failed with {}", name(errno)),
        }),
        (CallInjection::Fail { performed: true, .. }, CarriedOut::Performed(Err(errno))) => {
            CallEvidence::Ineffective(format!("{call}: failed by itself with {}", name(errno)))
        }
        (CallInjection::Short { .. }, CarriedOut::Performed(result)) => match result {
            Ok(moved) if requested_bytes.is_some_and(|requested| (moved as u64) < requested) => {
                CallEvidence::Effective(format!("{call}: moved only {moved} bytes"))
            }
            Ok(moved) => {
                CallEvidence::Ineffective(format!("{call}: moved {moved} bytes, as without a fault"))
            }
            Err(errno) => CallEvidence::Ineffective(format!("{call}: failed by itself with {}", name(errno))),
        },
        (CallInjection::Swap { .. }, _) => {
            CallEvidence::Effective(format!("{} before {call}", injection.describe()))
        }
        (injection, _) => CallEvidence::Effective(format!("{call}: {}", injection.describe())),
    }
}

/// The name of an errno, as in a manual page.
fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(injection: &CallInjection, done: CarriedOut) -> CallEvidence {
        let decided = DecidedCall { call: "write(a, 100 bytes), call 1".into(), requested_bytes: Some(100) };
        call_evidence(injection, &decided, done)
    }

    fn injections() -> Vec<CallInjection> {
        let errno = scenarios::Errno::from_name("EIO").expect("the table has it");
        let fail = |performed| CallInjection::Fail { errno, performed, persistent: false };
        vec![
            CallInjection::KillBefore,
            CallInjection::KillInside { bytes: 70 },
            CallInjection::KillAfter,
            fail(false),
            fail(true),
            CallInjection::Short { bytes: 70 },
        ]
    }

    #[test]
    fn what_could_not_be_done_is_never_evidence() {
        for injection in injections() {
            let evidence = evidence(&injection, CarriedOut::NotPossible);
            assert!(matches!(evidence, CallEvidence::Ineffective(_)), "{injection:?}: {evidence:?}");
        }
    }

    #[test]
    fn evidence_has_the_bytes_that_were_moved_not_those_that_were_planned() {
        let performed = CarriedOut::Performed(Ok(33));
        assert_eq!(
            evidence(&CallInjection::KillInside { bytes: 70 }, performed),
            CallEvidence::Effective("killed after 33 bytes of write(a, 100 bytes), call 1".into())
        );
        assert_eq!(
            evidence(&CallInjection::Short { bytes: 70 }, performed),
            CallEvidence::Effective("write(a, 100 bytes), call 1: moved only 33 bytes".into())
        );
    }

    #[test]
    fn a_short_call_that_moved_everything_and_one_that_failed_by_itself_show_nothing() {
        let short = CallInjection::Short { bytes: 70 };
        let [.., fail_after, _] = &injections()[..] else { unreachable!() };
        for (injection, result) in
            [(&short, Ok(100)), (&short, Err(Errno::ENOSPC)), (fail_after, Err(Errno::ENOSPC))]
        {
            let evidence = evidence(injection, CarriedOut::Performed(result));
            assert!(matches!(evidence, CallEvidence::Ineffective(_)), "{injection:?}: {evidence:?}");
        }
    }
}
