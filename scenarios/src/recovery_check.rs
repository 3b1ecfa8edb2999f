//! What decides, besides the exit code, whether a recovery is right, with the one text for people. Knows
//! nothing of how it is checked.

use serde::{Deserialize, Serialize};

/// A check of a recovery. The exit code is always checked, and is none of these: alone it does not show that a
/// recovery is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryCheck {
    /// The step that it resumed from, compared with the acknowledged step.
    ResumedStep,
    /// A value at the end, compared with the baseline's.
    FinalValue,
    /// What each step consumed, compared with the baseline.
    ConsumedSamples,
    /// A command that examines the recovered files.
    CheckCommand,
}

impl RecoveryCheck {
    /// All checks.
    pub const ALL: [RecoveryCheck; 4] = [
        RecoveryCheck::ResumedStep,
        RecoveryCheck::FinalValue,
        RecoveryCheck::ConsumedSamples,
        RecoveryCheck::CheckCommand,
    ];

    /// One line: which checks are made, and what cannot be noticed without the others.
    pub fn describe(made: &[RecoveryCheck]) -> String {
        let (made, missing): (Vec<_>, Vec<_>) =
            RecoveryCheck::ALL.into_iter().partition(|check| made.contains(check));
        let names = made.iter().map(|check| format!(", {}", check.name()));
        let names = if made.is_empty() { " only".to_owned() } else { names.collect() };
        let unnoticed: Vec<&str> = missing.iter().map(|check| check.notices()).collect();
        let unnoticed = match unnoticed.is_empty() {
            true => String::new(),
            false => format!("; cannot notice: {}", unnoticed.join(", ")),
        };
        format!("checks: exit code{names}{unnoticed}")
    }

    fn name(self) -> &'static str {
        match self {
            RecoveryCheck::ResumedStep => "resumed step",
            RecoveryCheck::FinalValue => "final value",
            RecoveryCheck::ConsumedSamples => "consumed samples",
            RecoveryCheck::CheckCommand => "check command",
        }
    }

    /// What only this check notices, and the options that it needs.
    fn notices(self) -> &'static str {
        match self {
            RecoveryCheck::ResumedStep => {
                "lost work and a restart from scratch (needs `--saved` and `--resumed`)"
            }
            RecoveryCheck::FinalValue => "other weights (needs `--same`)",
            RecoveryCheck::ConsumedSamples => "repeated or skipped samples (needs `--consumed`)",
            RecoveryCheck::CheckCommand => "damaged files (needs `--check`)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecoveryCheck;

    #[test]
    fn the_text_names_each_check_either_as_made_or_as_missing() {
        assert!(RecoveryCheck::describe(&[]).starts_with("checks: exit code only; cannot notice: lost work"));
        assert_eq!(
            RecoveryCheck::describe(&RecoveryCheck::ALL),
            "checks: exit code, resumed step, final value, consumed samples, check command"
        );
        for check in RecoveryCheck::ALL {
            let text = RecoveryCheck::describe(&[check]);
            assert!(text.contains(check.name()) && !text.contains(check.notices()), "{text}");
            let missing = RecoveryCheck::ALL.into_iter().filter(|other| *other != check);
            assert!(missing.clone().all(|other| text.contains(other.notices())), "{text}");
        }
    }
}
