//! How findings are reported: what the caller decides of their text. Knows no causes.

use crate::explore::states::CrashCandidate;

/// How findings are reported.
#[derive(Debug, Clone, Default)]
pub struct ReportSpec {
    /// The command that tries one state, with the word `STATE` in place of the state's name.
    pub repeat_command: String,
}

impl ReportSpec {
    pub(super) fn repeat_command_for(&self, candidate: &CrashCandidate) -> String {
        self.repeat_command.replacen("--state STATE", &format!("--state '{}'", candidate.name()), 1)
    }
}
