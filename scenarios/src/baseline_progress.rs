//! How far the jobs of a baseline came, and what resumes from its files do. Knows nothing of how a trial is
//! judged by it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ending::Ending;
use crate::verdict::Outcome;

/// What the baseline announced of its progress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineProgress {
    /// The jobs, in the order in which they ended.
    pub jobs: Vec<BaselineJob>,
    /// The first step that each job announced, if it was the same for all.
    pub first_step: Option<u64>,
    /// The distance of the announced steps, if it was the same everywhere: then a missing one is noticed.
    pub stride: Option<u64>,
    /// What the target did when it was resumed from the files of the baseline. `None`: it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<EndResume>,
    /// What the target did when it was resumed from the files right after a save. Empty: it was not tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub save_controls: Vec<SaveControl>,
    /// Why nothing was tried right after a save, such as files that lie outside of the target's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_save_controls: Option<String>,
}

/// An acknowledged save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedSave {
    /// The name of its job, if the target's lines tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The step that is saved.
    pub step: u64,
}

impl fmt::Display for AnnouncedSave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.job {
            Some(job) => write!(f, "step {} of job `{job}`", self.step),
            None => write!(f, "step {}", self.step),
        }
    }
}

/// A control: a resume from the files right after a save of the baseline was acknowledged, without any fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveControl {
    /// The save.
    pub save: AnnouncedSave,
    /// How a trial that began with a kill at this moment would be judged.
    pub outcome: Outcome,
    /// What the outcome rests on.
    pub because: String,
    /// Whether it continued from a later step than the first one, and no line said that it resumes.
    pub resumes_silently: bool,
    /// The line of the target that explains a failure best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

impl SaveControl {
    /// Whether the target recovers, as far as anything shows it.
    pub fn is_sound(&self) -> bool {
        matches!(self.outcome, Outcome::Recovered | Outcome::NotJudged)
    }
}

/// One job of the baseline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineJob {
    /// Its name, if the target's lines tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The last step that it announced.
    pub last_step: Option<u64>,
    /// The newest step that it acknowledged.
    pub acknowledged: Option<u64>,
    /// Whether it announced its end.
    pub finished: bool,
}

/// A resume from the files that a run left at its end, or at one of its saves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndResume {
    /// How it ended. `None`: it was stopped, because it had shown what was asked.
    pub ending: Option<Ending>,
    /// The jobs that it resumed, in order.
    pub resumed: Vec<ResumedJob>,
    /// The values with which jobs ended, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// The save right after which the files were copied. `None`: they are those of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_save: Option<AnnouncedSave>,
    /// The line of the target that explains best why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Why it was not tried, such as files that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_tried: Option<String>,
    /// Whether the files are those of an earlier resume, whose result this is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// A job that was resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumedJob {
    /// Its name, if the target's lines tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The step that it was resumed from; 0 is from scratch.
    pub from: u64,
}
