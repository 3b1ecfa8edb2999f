//! What to explore, and how: a specification for each stage.

use std::path::Path;

use super::record::RecordSpec;
use super::replay::{JudgeSpec, ReplaySpec};
use super::report::ReportSpec;
use super::states::EnumerateSpec;

/// What to explore, and how.
#[derive(Debug, Clone)]
pub struct ExploreConfig {
    /// What is recorded.
    pub record: RecordSpec,
    /// Which crash states are tried.
    pub enumerate: EnumerateSpec,
    /// How the recoveries are run.
    pub replay: ReplaySpec,
    /// How the recoveries are judged.
    pub judge: JudgeSpec,
    /// How findings are reported.
    pub report: ReportSpec,
}

impl ExploreConfig {
    /// The same with all sandboxes in another existing, empty directory.
    pub(super) fn in_dir(mut self, work_dir: &Path) -> ExploreConfig {
        self.record.work_dir = work_dir.into();
        self.replay.work_dir = work_dir.into();
        self
    }

    /// Whether the recovery runs the recorded command itself, so that it can also start without any
    /// checkpoint.
    pub(super) fn resumes_with_command(&self) -> bool {
        self.replay.resume.argv == self.record.command.argv
    }
}
