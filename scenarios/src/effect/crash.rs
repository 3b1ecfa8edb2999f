//! The fault `crash`: every process of the target is killed at once.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::call_injection::{CallInjection, CallSite};
use crate::effect::checker::Checker;
use crate::effect::keys::{TriggerDraft, fault};
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::operation::CallKind;

fault!(
    /// Kills the whole process tree with SIGKILL.
    CrashDraft {
        /// Where in a call the kill happens. Default: before the call, if the trigger names one call; with
        /// `at: every`, before each call, inside each write, and after the last call.
        point: Option<KillPoint>,
    }
);

/// Where in a call a kill happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KillPoint {
    /// Before the kernel does the call.
    Before,
    /// Half of the bytes of a write have been written.
    Inside,
    /// After the kernel has done the call.
    After,
}

/// Kills every process of the target at once with SIGKILL, then resumes the target.
#[derive(Debug, Clone)]
pub struct Crash {
    /// Where in a call, if the file states it.
    pub point: Option<KillPoint>,
}

impl CheckEffect for CrashDraft {
    type Checked = Crash;

    fn check(&self, checker: &mut Checker) -> Crash {
        if matches!(self.when, None | Some(TriggerDraft::Start | TriggerDraft::Restart)) {
            checker.method_problem(
                "before its start the target cannot be killed",
                "add to `crash`: `when: {step: 4}`, or another trigger",
            );
        }
        Crash { point: self.point }
    }
}

impl EffectSpec for Crash {
    fn ends_target(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        "SIGKILL of every process".into()
    }

    fn call_injections(&self, site: &CallSite) -> Vec<CallInjection> {
        let is_write = site.kind == Some(CallKind::Write) && site.len_bytes > 1;
        let inside = is_write.then_some(CallInjection::KillInside { bytes: site.len_bytes / 2 });
        match self.point {
            None if site.is_one_of_every => {
                let after = site.is_last.then_some(CallInjection::KillAfter);
                [Some(CallInjection::KillBefore), inside, after].into_iter().flatten().collect()
            }
            None | Some(KillPoint::Before) => vec![CallInjection::KillBefore],
            Some(KillPoint::Inside) => inside.into_iter().collect(),
            Some(KillPoint::After) => vec![CallInjection::KillAfter],
        }
    }
}
