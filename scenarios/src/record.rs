//! The whole run as data: dated events, one JSON object a line. A record alone suffices to judge again and to
//! render every report; whatever a report shows must be in here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::verdict::{Outcome, Verdict};

/// Version of the record's format, written in `RunStarted`.
pub const RECORD_FORMAT: u32 = 1;

/// One line of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// Microseconds since the run started, monotonic.
    pub at_us: u64,
    /// Scenario that it belongs to (its id, such as `fs-01`, or `fs-01 without atomic-save`); none for events of the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// Trial of that scenario, 1-based; 0 is the steady state; none for events of the scenario itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<u32>,
    /// What happened.
    pub event: Event,
}

/// What happened. Externally tagged: `{"saved":{"step":40}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// First line of every record.
    RunStarted(RunStarted),
    /// A scenario begins. Its files are carried whole, so that the record can be judged again anywhere.
    ScenarioStarted(Box<ScenarioStarted>),
    /// The undisturbed twin has been run (or taken from the cache of this run).
    Baseline(BaselineFacts),
    /// Ways of striking that a bound left out.
    LeftOut { trials: u64, why: String },
    /// One way of striking begins: `what` says which, such as `SIGKILL at call 7 of 23`.
    TrialStarted { of: u32, what: String },
    /// The target's process has been started.
    TargetStarted(TargetStarted),
    /// The target announced a training step.
    Step { step: u64, loss: Option<f64> },
    /// The target promised that this step is durable.
    Saved { step: u64 },
    /// The target said which step it resumes from; 0 is from scratch.
    Resumed { step: u64 },
    /// A line of the target's that a pattern asked for, or its last lines before it ended badly.
    Output { stream: OutputStream, line: String },
    /// The fault is in place and waits for its trigger. `mechanism` names what does it, such as `tmpfs remounted`.
    FaultArmed { fault: String, mechanism: String },
    /// The fault took effect; `evidence` is what shows it, such as `statvfs: 0 free inodes`.
    FaultEffective { fault: String, evidence: String },
    /// The fault was taken back.
    FaultReverted { fault: String, how: String },
    /// The target's main process ended.
    TargetEnded { attempt: u32, ending: Ending },
    /// Peak resident memory of the target's largest process so far in this trial, bytes.
    Memory { peak_bytes: u64 },
    /// A question was asked of the target or its files.
    Probed(Probed),
    /// The simulated GPU found something that the target does wrong by itself, such as an access out of bounds.
    GpuDefect { what: String },
    /// The trial is over, and this is what it came to.
    TrialEnded(Box<TrialFacts>),
    /// The scenario's verdict.
    Judged { verdict: Verdict, seconds: f64 },
    /// Last line of every complete record.
    RunEnded(RunEnded),
}

/// Facts about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Always [`RECORD_FORMAT`] for records of this version.
    pub format: u32,
    /// Version of trainwreck.
    pub version: String,
    /// Name of the run, also of its folder, such as `2026-11-23T19-06-31Z-seed-1`.
    pub run: String,
    /// Wall-clock start, RFC 3339, UTC.
    pub started: String,
    pub seed: u64,
    /// The command line that was given.
    pub command: Vec<String>,
    pub machine: MachineFacts,
    /// How many scenarios will be run.
    pub scenarios: u32,
}

/// The machine that a run was made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// `uname -r`.
    pub kernel: String,
    pub cores: u32,
    pub memory_bytes: u64,
    /// `root` or `ordinary user`.
    pub user: String,
    pub mechanisms: Vec<Mechanism>,
}

/// Something that faults are made with, and whether this machine grants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanism {
    /// Such as `user-namespace`, `cgroup-memory`.
    pub name: String,
    pub granted: bool,
    /// How it is granted, or why it is not and how to get it; one line.
    pub detail: String,
}

/// A scenario as it is about to be run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScenarioStarted {
    pub title: String,
    /// `critical`, `medium`, `low` or `extra`.
    pub severity: String,
    /// Folder of the library that it lies in, such as `filesystem`.
    pub domain: String,
    /// Where its file was read from.
    pub file: String,
    /// The scenario file's text.
    pub source: String,
    /// The target file's text, and where it was read from.
    pub target_source: String,
    pub target_file: String,
    /// Guards that the scenario relies on.
    pub guards: Vec<String>,
    /// The guard that was taken away (`prove`), if one was.
    pub guard_removed: Option<String>,
    /// The one command that repeats it.
    pub repeat: String,
}

/// The undisturbed run that "recovered" is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineFacts {
    /// It ended well; if not, the scenario is inconclusive.
    pub ended_well: bool,
    /// Last announced step.
    pub steps: u64,
    /// Steps that were promised durable, in order.
    pub saves: Vec<u64>,
    /// Values that the target file's `same` pattern found, sorted; compared after recovery.
    pub same: Vec<String>,
    pub seconds: f64,
    /// Peak resident memory of the largest process, bytes; none where it could not be read.
    pub peak_memory_bytes: Option<u64>,
    /// What the method counted in it, by name, such as `calls of save 2` -> 23.
    pub counted: BTreeMap<String, u64>,
    /// Loss of the last announced step, where it was told and finite.
    #[serde(default)]
    pub final_loss: Option<f64>,
    /// What the simulated GPU found; then it did not end well.
    #[serde(default)]
    pub gpu_defects: Vec<String>,
    /// Taken from an earlier scenario of this run with the same target, workload and seed.
    pub cached: bool,
}

/// A start of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStarted {
    /// 1 for the first start in a trial; each resume adds one.
    pub attempt: u32,
    pub command: Vec<String>,
}

/// Where a line was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Exit code.
    Exited(i32),
    /// Signal number, not sent by the harness.
    Signalled(i32),
    /// The harness killed it, as the method asked.
    KilledByFault,
    /// The harness killed it because it made no progress within its time.
    TimedOut,
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The fact asked for, in the words of the scenario file.
    pub probe: String,
    pub held: bool,
    /// What was found, one line.
    pub found: String,
}

/// What one trial came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialFacts {
    /// What was tried, as in `TrialStarted`.
    pub what: String,
    pub outcome: Outcome,
    /// Why the outcome is that, one line.
    pub because: String,
    /// Evidence for each fault that landed; empty: the trial is inconclusive.
    pub evidence: Vec<String>,
    /// Last step announced before the fault ended the target; none when it was not ended.
    pub step_at_fault: Option<u64>,
    /// Last step that was promised durable before that.
    pub acknowledged: Option<u64>,
    /// Step that it resumed from after that.
    pub resumed_from: Option<u64>,
    /// Steps that had to be trained again.
    pub lost_steps: Option<u64>,
    /// Seconds from the fault's landing to the next announced step.
    pub recovery_seconds: Option<f64>,
    /// Restarts by the harness, beside those that the method caused by killing the target.
    pub restarts: u32,
    /// As in [`SteadyFacts::same`].
    pub same: Vec<String>,
    /// Whether it is equal to the steady state's; none where the target gives no value, or the fault changed the workload.
    #[serde(default)]
    pub same_as_baseline: Option<bool>,
    /// Last announced step, and its loss where it was told and finite.
    #[serde(default)]
    pub final_step: Option<u64>,
    #[serde(default)]
    pub final_loss: Option<f64>,
    /// What the simulated GPU found.
    #[serde(default)]
    pub gpu_defects: Vec<String>,
    pub peak_memory_bytes: Option<u64>,
    pub probes: Vec<Probed>,
    pub seconds: f64,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEnded {
    pub seconds: f64,
    /// As HOUSE's table: 0 survived, 1 violated, 3 inconclusive, 4 harness failed, 5 clean-up failed.
    pub exit_code: u8,
}

/// A record in memory, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    pub entries: Vec<RecordEntry>,
    /// The last line is cut off: the harness was killed while it wrote.
    pub truncated: bool,
}

/// Why a text is not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct RecordError {
    /// 1-based.
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl RecordEntry {
    /// One line of a record, without its line end.
    pub fn to_line(&self) -> String {
        // Maps have text keys and numbers are finite or null, so there is nothing that JSON can't say.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Record {
    /// Reads a record. A last line that is cut off is left out, and `truncated` says so.
    pub fn parse(text: &str) -> Result<Record, RecordError> {
        let mut record = Record::default();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            match serde_json::from_str::<RecordEntry>(line) {
                Ok(entry) => record.entries.push(with_known_format(entry, at + 1)?),
                Err(_) if at + 1 == lines.len() && at > 0 && !text.ends_with('\n') => record.truncated = true,
                Err(error) => {
                    return Err(RecordError {
                        line: at + 1,
                        column: error.column(),
                        message: format!("not an entry of a record: {error}"),
                    });
                }
            }
        }
        match record.entries.first().map(|entry| &entry.event) {
            Some(Event::RunStarted(_)) => Ok(record),
            _ => {
                Err(RecordError { line: 1, column: 1, message: "a record begins with `run-started`".into() })
            }
        }
    }
}

fn with_known_format(entry: RecordEntry, line: usize) -> Result<RecordEntry, RecordError> {
    match &entry.event {
        Event::RunStarted(started) if started.format > RECORD_FORMAT => {
            let message = format!(
                "format {} is newer than {RECORD_FORMAT}, the newest that this version knows",
                started.format
            );
            Err(RecordError { line, column: 1, message })
        }
        _ => Ok(entry),
    }
}
