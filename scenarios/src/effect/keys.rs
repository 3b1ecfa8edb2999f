//! The keys that every fault has in a scenario file, as they are written. The JSON schema is made from these
//! types, and an editor shows their doc comments as help. Knows no fault.

use gpu_words::Persistence;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::operation::CallKind;
use crate::trigger::{Occurrence, StepChoice};
use crate::units::TimeSpan;
use crate::yaml::leaf::{PathGlob, Pattern};
use crate::yaml::spanned::Spanned;

/// Defines the draft of a fault: its own keys, and the keys that every fault has.
macro_rules! fault {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $type,)*
            /// When the fault is injected. Default: before the target starts.
            pub(crate) when: Option<crate::effect::keys::TriggerDraft>,
            /// How often the fault is injected in one trial: `transient` (once, the default) or `persistent`.
            #[serde(default)]
            pub(crate) persistence: gpu_words::Persistence,
            /// When the fault is reverted. Default: never.
            pub(crate) until: Option<crate::effect::keys::UntilDraft>,
            /// What shows that the fault was effective. Replaces the fault's own evidence.
            pub(crate) effective_if: Option<crate::effect::keys::EffectiveIfDraft>,
            /// Maximum number of trials (default: 64). Trials beyond it are left out, and counted in the
            /// report.
            pub(crate) max_trials: Option<crate::yaml::spanned::Spanned<u32>>,
            /// Whether a trial counts also if this fault was not effective. Default: `false`.
            #[serde(default)]
            pub(crate) optional: bool,
        }

        impl $name {
            /// The keys that every fault has.
            pub(crate) fn common(&self) -> crate::effect::keys::CommonKeys<'_> {
                let $name { when, persistence, until, effective_if, max_trials, optional, .. } = self;
                crate::effect::keys::CommonKeys {
                    when: when.as_ref(),
                    persistence: *persistence,
                    until: until.as_ref(),
                    effective_if: effective_if.as_ref(),
                    max_trials: max_trials.as_ref(),
                    is_optional: *optional,
                }
            }
        }
    };
}
pub(crate) use fault;

/// The keys that every fault has.
#[derive(Clone, Copy)]
pub(crate) struct CommonKeys<'a> {
    pub(crate) when: Option<&'a TriggerDraft>,
    pub(crate) persistence: Persistence,
    pub(crate) until: Option<&'a UntilDraft>,
    pub(crate) effective_if: Option<&'a EffectiveIfDraft>,
    pub(crate) max_trials: Option<&'a Spanned<u32>>,
    pub(crate) is_optional: bool,
}

/// When a fault is injected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TriggerDraft {
    /// Before the target starts.
    Start,
    /// After the target has ended, by another fault or by itself, and before it is started again.
    Restart,
    /// When the target announces this step or a later one; or, with `every`, each step in turn, one trial each.
    Step(StepChoice),
    /// When a line of the target's output matches.
    Output(Pattern),
    /// This long after the target has started.
    After(TimeSpan),
    /// At exactly one file system call below the root. The target waits in the call until the fault has been
    /// injected.
    Call(CallDraft),
}

/// A file system call. Calls of all threads and processes of the target are counted together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CallDraft {
    /// Which kinds of call. Default: those that change files or make a change durable.
    pub(crate) to: Option<Spanned<Vec<CallKind>>>,
    /// Only calls on these paths.
    pub(crate) on: Option<PathGlob>,
    /// Only calls during this phase of the target file, such as `checkpoint-save`. The seed chooses one
    /// occurrence of the phase, never the first.
    pub(crate) during: Option<Spanned<String>>,
    /// Which of the calls that match.
    pub(crate) at: Spanned<Occurrence>,
}

/// When a fault is reverted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UntilDraft {
    /// At the end of the trial.
    Never,
    /// This long after the injection.
    After(TimeSpan),
    /// When a line of the target's output matches.
    Output(Pattern),
}

/// What shows that a fault was effective.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EffectiveIfDraft {
    /// A line of the target's output matches.
    Output(Pattern),
}
