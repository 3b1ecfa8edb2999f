//! How findings are reported: what the caller decides of their text. Knows no causes.

use crate::explore::states::StateName;

/// How findings are reported.
#[derive(Debug, Clone, Default)]
pub struct ReportSpec {
    /// The command that tries one state, with the word `STATE` in place of the state's name.
    pub repeat_command: String,
    /// The option that uses the kept recording, if the recording is kept.
    pub recording_option: String,
}

impl ReportSpec {
    /// The same if the recording was kept.
    pub(in crate::explore) fn with_kept_recording(&self) -> ReportSpec {
        let state = format!("--state STATE {}", self.recording_option);
        let repeat_command = self.repeat_command.replacen("--state STATE", &state, 1);
        ReportSpec { repeat_command, ..self.clone() }
    }

    /// The same for the crash states of the recovery from this state.
    pub(in crate::explore) fn after_first_crash(&self, first: &StateName) -> ReportSpec {
        let states = format!("--state '{first}' --second-state STATE");
        let repeat_command = self.repeat_command.replacen("--state STATE", &states, 1);
        ReportSpec { repeat_command, ..self.clone() }
    }

    /// The command that tries this state. No letter of a state's name needs quotes other than these.
    pub(super) fn repeat_command_for(&self, state: &StateName) -> String {
        self.repeat_command.replacen("state STATE", &format!("state '{state}'"), 1)
    }
}
