//! What to explore, and how: a specification for each stage.

use std::path::{Path, PathBuf};

use scenarios::RecoveryCheck;

use super::record::{KeepRecordingSpec, RecordSpec};
use super::replay::{JudgeSpec, ReplaySpec};
use super::report::ReportSpec;
use super::states::{EnumerateSpec, StateName};

/// What to explore, and how.
#[derive(Debug, Clone)]
pub struct ExploreConfig {
    /// What is recorded.
    pub record: RecordSpec,
    /// The directory of a kept recording, which is used in place of a new one.
    pub kept_recording: Option<PathBuf>,
    /// Where to keep the recording. `None`: nowhere.
    pub keep_recording: Option<KeepRecordingSpec>,
    /// An existing, empty directory for the files of the states that findings show. `None`: they are not kept.
    pub keep_files: Option<PathBuf>,
    /// Which crash states are tried.
    pub enumerate: EnumerateSpec,
    /// Of the second crashes, only this state of the recovery from the only first state.
    pub second_state: Option<StateName>,
    /// How the recoveries are run.
    pub replay: ReplaySpec,
    /// How the recoveries are judged.
    pub judge: JudgeSpec,
    /// How findings are reported.
    pub report: ReportSpec,
}

impl ExploreConfig {
    /// The same for the recovery from a first crash, with all sandboxes in another existing, empty directory.
    pub(super) fn after_first_crash(mut self, first: &StateName, work_dir: &Path) -> ExploreConfig {
        self.report = self.report.after_first_crash(first);
        self.enumerate.only_state = self.second_state.take();
        self.keep_recording = None;
        self.kept_recording = None;
        self.keep_files = None;
        self.record.work_dir = work_dir.into();
        self.replay.work_dir = work_dir.into();
        self
    }

    /// What decides, besides the exit code, whether a recovery is right. Sorted.
    pub fn checks(&self) -> Vec<RecoveryCheck> {
        let is_made = |check: &RecoveryCheck| match check {
            RecoveryCheck::ResumedStep => self.judge.resumed.is_some() && self.record.saved_pattern.is_some(),
            RecoveryCheck::FinalValue => self.judge.same.is_some(),
            RecoveryCheck::ConsumedSamples => self.judge.consumed.is_some(),
            RecoveryCheck::CheckCommand => self.replay.check.is_some(),
        };
        RecoveryCheck::ALL.into_iter().filter(is_made).collect()
    }

    /// Whether the recovery runs the recorded command itself, so that it can also start without any
    /// checkpoint.
    pub(super) fn resumes_with_command(&self) -> bool {
        self.replay.resume.argv == self.record.command.argv
    }
}
