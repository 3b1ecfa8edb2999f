//! The fault `crash-states`: the target is resumed from each file tree that a crash may leave.

use gpu_words::Persistence;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::call::CALL_MECHANISM;
use crate::effect::checker::{Checker, NameKind};
use crate::effect::crash_model::{CrashModel, CrashStates};
use crate::effect::keys::CommonKeys;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::PathGlob;
use crate::yaml::spanned::Spanned;

/// File trees as crashes leave them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CrashStatesDraft {
    /// Which kinds of crash. Default: a kill of the process, and a power loss on `ext4`, `xfs`, `btrfs` and
    /// `posix`.
    pub(crate) of: Option<Spanned<Vec<CrashModel>>>,
    /// Only crashes from the start of one occurrence of this phase to the start of the next. The seed chooses
    /// the occurrence, never the first.
    pub(crate) during: Option<Spanned<String>>,
    /// Only crashes at changes of these paths.
    pub(crate) on: Option<PathGlob>,
    /// 1 (the default): states that a crash of the target leaves. 2: the target is killed once, and the
    /// states are those that a second crash leaves, during the recovery.
    pub(crate) depth: Option<Spanned<u32>>,
    /// Maximum number of trials (default: 64): representatives of each kind first. Trials beyond it are left
    /// out, and counted in the report.
    pub(crate) max_trials: Option<Spanned<u32>>,
}

impl CrashStatesDraft {
    /// The only one of the common keys that this fault has.
    pub(crate) fn common(&self) -> CommonKeys<'_> {
        CommonKeys {
            when: None,
            persistence: Persistence::Transient,
            until: None,
            effective_if: None,
            max_trials: self.max_trials.as_ref(),
            is_optional: false,
        }
    }
}

impl CheckEffect for CrashStatesDraft {
    type Checked = CrashStates;

    fn check(&self, checker: &mut Checker) -> CrashStates {
        if let Some(models) = &self.of {
            checker.require_not_empty(models, "`of` is empty");
        }
        if let Some(depth) = self.depth.as_ref().filter(|depth| !(1..=2).contains(&depth.value)) {
            checker.problems.push(
                depth.problem("`depth` must be 1 (one crash) or 2 (a second crash during the recovery)"),
            );
        }
        CrashStates {
            models: self.of.as_ref().map_or(CrashModel::DEFAULTS.to_vec(), |models| models.value.clone()),
            phase: self.during.as_ref().map(|during| checker.target_name(NameKind::Phase, during)),
            paths: self.on.as_ref().map(|on| on.0.compile_matcher()),
            in_recovery: self.depth.as_ref().is_some_and(|depth| depth.value == 2),
        }
    }
}

impl EffectSpec for CrashStates {
    fn describe(&self) -> String {
        "files as a crash leaves them".into()
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some(CALL_MECHANISM)
    }

    fn crash_states(&self) -> Option<&CrashStates> {
        Some(self)
    }
}
