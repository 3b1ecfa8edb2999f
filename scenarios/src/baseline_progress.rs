//! How far the jobs of a baseline came, and what a resume from its files does. Knows nothing of how a trial is
//! judged by it.

use serde::{Deserialize, Serialize};

use crate::ending::Ending;

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

/// A resume from the files that a run left, after that run had ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndResume {
    /// How it ended. `None`: it was stopped, because it had shown what was asked.
    pub ending: Option<Ending>,
    /// The jobs that it resumed, in order.
    pub resumed: Vec<ResumedJob>,
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
