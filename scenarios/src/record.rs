//! The record of a run: events with timestamps, one JSON object per line. A record alone is enough to judge a
//! run again and to render every report, so everything that a report shows must be in it. Writes no files.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::baseline_progress::{BaselineProgress, EndResume};
use crate::ending::Ending;
use crate::failed_run::{FailedRun, OutputStream};
use crate::fault_id::{FaultId, NotEffective};
use crate::record_lines::{RecordLineFault, RecordLines};
use crate::resource_use::ResourceUse;
use crate::sandbox_hint::SandboxHint;
use crate::trial_starts::TrialStarts;
use crate::trials_planned::TrialsPlanned;
use crate::verdict::{Outcome, Verdict};

/// Version of the record format, written in `RunStarted`.
pub const RECORD_FORMAT: u32 = 5;

/// One line of a record. In the file, each line also has its number and a digest: see [`RecordLines`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// Microseconds since the run started, monotonic.
    pub at_us: u64,
    /// Scenario of the event: its id, such as `fs-01`, or `fs-01 without atomic-save`. `None` for events of
    /// the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// Trial of that scenario, 1-based; 0 is the baseline. `None` for events of the scenario itself.
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
    /// A scenario starts. The event contains its files, so that the record can be judged again on any
    /// machine.
    ScenarioStarted(Box<ScenarioStarted>),
    /// The baseline has been run, or was taken from this run's cache.
    Baseline(Box<BaselineFacts>),
    /// In a run of `ablate`: the undisturbed run without the guard. It comes before the first trial.
    GuardControl(Box<BaselineFacts>),
    /// A run without any fault did not end well, so the scenario is inconclusive.
    UndisturbedRunFailed(Box<FailedRun>),
    /// What the recording of a run, from which crash states are built, does not show: a trial may then miss
    /// something.
    RecordingWeakened { why: Vec<String> },
    /// The trials that the scenario consists of, and those that are left out. Comes before the first trial.
    TrialsPlanned(TrialsPlanned),
    /// A trial starts. `of` is the number of trials, `what` describes this one, such as `SIGKILL at call 7 of
    /// 23`.
    TrialStarted { of: u32, what: String },
    /// The target's process has been started.
    TargetStarted(TargetStarted),
    /// The target announced a training step. `job`: the job that the line names, here and below.
    Step {
        step: u64,
        loss: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// The target acknowledged a save: this step is durable.
    Saved {
        step: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// The target announced the step that it resumes from; 0 means from scratch.
    Resumed {
        step: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// The target announced the step that it goes back to on purpose.
    RolledBack {
        step: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// A line of the target's output: one that matches a pattern, or one of the last lines before it failed.
    Output { stream: OutputStream, line: String },
    /// The fault is prepared and waits for its trigger. `mechanism` describes how it is injected, such as
    /// `tmpfs remounted`.
    FaultArmed { fault: FaultId, mechanism: String, optional: bool },
    /// The fault was effective. `evidence` describes what shows it, such as `write(a): failed with ENOSPC`.
    FaultEffective { fault: FaultId, evidence: String },
    /// The fault was reverted.
    FaultReverted { fault: FaultId, how: String },
    /// The trial is over, and nothing has shown an effect of the fault.
    FaultNotEffective(NotEffective),
    /// The target's main process exited or was killed. `exit_code`: that with which it exited after a signal of
    /// the method had asked it to.
    TargetEnded {
        attempt: u32,
        ending: Ending,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// After the end of the trial, the target was resumed once from the files that it had left.
    EndResumed(EndResume),
    /// Peak resident memory of the target's largest process so far in this trial, bytes.
    Memory { peak_bytes: u64 },
    /// The most that the target's processes used so far in this trial, if an expectation asks for it.
    Resources(ResourceUse),
    /// A check of the target or its files was made.
    Probed(Probed),
    /// The simulated GPU detected an error of the target itself, such as an access out of bounds.
    GpuDefect { what: String },
    /// The trial did not reach the call at which a fault waits, and is tried again. What it did before does not
    /// count.
    TrialRepeated { why: String },
    /// The trial is over.
    TrialEnded(Box<TrialFacts>),
    /// The target was forked in this trial, which has ended, and forks are not to be trusted. The trial is run again, and
    /// what it did before does not count.
    TrialDiscarded,
    /// With this trial it was known that the guard is caught, so trials that had not started then were left out.
    /// Comes after the last trial.
    TrialsStopped { at: u32 },
    /// How the target was started in the trials, where there was a choice. Comes after the last trial.
    TrialStarts(TrialStarts),
    /// The scenario has a verdict.
    Judged { verdict: Verdict, seconds: f64 },
    /// Last line of every complete record.
    RunEnded(RunEnded),
}

/// Facts about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Always [`RECORD_FORMAT`] for records of this version.
    pub format: u32,
    /// Version of Trainwreck.
    pub version: String,
    /// Name of the run and of its directory, such as `2026-11-23T19-06-31Z-seed-1`.
    pub run: String,
    /// Wall-clock time of the start, RFC 3339, UTC.
    pub started: String,
    /// Seed of every random choice of the run.
    pub seed: u64,
    /// The command line.
    pub command: Vec<String>,
    pub machine: MachineFacts,
    /// Number of scenarios that will be run.
    pub scenarios: u32,
}

/// The machine on which the run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// `uname -r`.
    pub kernel: String,
    pub cores: u32,
    pub memory_bytes: u64,
    /// `root` or `ordinary user`.
    pub user: String,
    /// What this machine supports.
    pub mechanisms: Vec<Mechanism>,
}

/// Something that faults need, and whether this machine allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanism {
    /// Such as `user-namespace`, `cgroup-memory`.
    pub name: String,
    /// Whether it is available.
    pub granted: bool,
    /// How it is available, or why it is not and how to enable it; one line.
    pub detail: String,
}

/// A scenario at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScenarioStarted {
    /// One line that describes what happens to the trainer.
    pub title: String,
    /// `critical`, `medium`, `low` or `extra`.
    pub severity: String,
    /// Name of the directory that contains it, such as `filesystem`.
    pub domain: String,
    /// Path of the scenario file.
    pub file: String,
    /// Text of the scenario file.
    pub source: String,
    /// Text of the target file.
    pub target_source: String,
    /// Path of the target file.
    pub target_file: String,
    /// Guards that the scenario relies on.
    pub guards: Vec<String>,
    /// The guard that was removed, in a run of `ablate`.
    pub guard_removed: Option<String>,
    /// The command that repeats the scenario.
    pub repeat: String,
    /// Names of the environment variables that the target inherited from the harness. Their values may be
    /// secret, so they are not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherited: Vec<String>,
}

/// The baseline: an undisturbed run, with which recovered runs are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineFacts {
    /// Whether it exited with 0 and without GPU defects. If not, the scenario is inconclusive.
    pub ended_well: bool,
    /// How it ended. `None` in records of versions that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// The last announced step.
    pub steps: u64,
    /// The acknowledged steps, in order.
    pub saves: Vec<u64>,
    /// Values that the target file's `same` pattern found, sorted. Compared with those of recovered runs.
    pub same: Vec<String>,
    /// Wall-clock time of the run.
    pub seconds: f64,
    /// Peak resident memory of the largest process, in bytes. `None` if it could not be read.
    pub peak_memory_bytes: Option<u64>,
    /// What was counted for the method's faults, by name, such as `calls of save 2` -> 23.
    pub counted: BTreeMap<String, u64>,
    /// Loss of the last announced step, if it was announced and finite.
    #[serde(default)]
    pub final_loss: Option<f64>,
    /// Errors of the target that the simulated GPU detected.
    #[serde(default)]
    pub gpu_defects: Vec<String>,
    /// What the target met in the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandbox_hints: Vec<SandboxHint>,
    /// How far its jobs came, and what a resume from its files does.
    #[serde(default)]
    pub progress: BaselineProgress,
    /// The patterns of the target file that no line of it matched, with their keys: what they should tell is not
    /// known, so the scenario is inconclusive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<String>,
    /// Whether it was taken from an earlier scenario of this run with the same target, workload and seed.
    pub cached: bool,
}

/// A start of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStarted {
    /// 1 for the first start in a trial; each resume adds one.
    pub attempt: u32,
    /// The command line of the target.
    pub command: Vec<String>,
}

/// What a check of the target or its files examines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeKind {
    /// The target's `verify` command, at the end.
    Verifies,
    /// The target's `verify` command, on the files that the method left.
    VerifiesBeforeResume,
    /// The exit code of the main process after a signal of the method.
    ExitCode,
    /// The processes that are left when the main process has exited.
    Processes,
    /// The number of files that match.
    Files,
    /// What a client of the target has been answered.
    Answers,
}

/// A check of a fact, and its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The expectation that it answers, as an index into those of the scenario.
    pub expectation: usize,
    /// What was examined.
    pub kind: ProbeKind,
    /// The fact, as written in the scenario file.
    pub probe: String,
    /// Whether the fact holds.
    pub held: bool,
    /// What was observed, one line.
    pub found: String,
}

/// The facts of one trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialFacts {
    /// What the trial does, as in `TrialStarted`.
    pub what: String,
    /// What the target did.
    pub outcome: Outcome,
    /// Why the outcome is what it is, one line.
    pub because: String,
    /// The line of the target that explains best why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Evidence of each fault that was effective.
    pub evidence: Vec<String>,
    /// The faults that were not effective, without those that are optional.
    pub not_effective: Vec<NotEffective>,
    /// The last step that was announced before the fault ended the target. `None` if no fault ended it.
    pub step_at_fault: Option<u64>,
    /// The last step that was acknowledged before that.
    pub acknowledged: Option<u64>,
    /// The step that the target resumed from after that.
    pub resumed_from: Option<u64>,
    /// Number of steps that were trained again.
    pub lost_steps: Option<u64>,
    /// Seconds from when the fault became effective to the next announced step.
    pub recovery_seconds: Option<f64>,
    /// Restarts by the harness, without those that the method caused by killing the target.
    pub restarts: u32,
    /// As in [`BaselineFacts::same`].
    pub same: Vec<String>,
    /// Whether `same` equals the baseline's. `None` if the target reports no values, or the fault changed the
    /// workload.
    #[serde(default)]
    pub same_as_baseline: Option<bool>,
    /// The last announced step.
    #[serde(default)]
    pub final_step: Option<u64>,
    /// Loss of the last announced step, if it was announced and finite.
    #[serde(default)]
    pub final_loss: Option<f64>,
    /// Errors of the target that the simulated GPU detected.
    #[serde(default)]
    pub gpu_defects: Vec<String>,
    /// Peak resident memory of the largest process, in bytes. `None` if it could not be read.
    pub peak_memory_bytes: Option<u64>,
    /// What the processes used at most. `None` if no expectation asks for it.
    #[serde(default)]
    pub resource_use: Option<ResourceUse>,
    /// The checks that were made in this trial.
    pub probes: Vec<Probed>,
    /// Wall-clock time of the trial.
    pub seconds: f64,
}

impl TrialFacts {
    /// Whether the trial shows what the target does under the method's faults: each of them was effective, apart
    /// from optional ones, and at least one was.
    pub fn counts(&self) -> bool {
        self.not_effective.is_empty() && !self.evidence.is_empty()
    }

    /// Whether a fault waited for a call that the baseline run made and this trial did not.
    pub fn is_not_reached(&self) -> bool {
        self.not_effective.iter().any(|fault| fault.not_reached)
    }
}

/// The entries of the last attempt at a trial, of all entries of the trial in order.
pub fn last_attempt<E: Borrow<RecordEntry>>(entries: &[E]) -> &[E] {
    let is_end =
        |entry: &E| matches!(entry.borrow().event, Event::TrialRepeated { .. } | Event::TrialDiscarded);
    let first = entries.iter().rposition(is_end).map_or(0, |end| end + 1);
    &entries[first..]
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEnded {
    /// Wall-clock time of the run.
    pub seconds: f64,
    /// Exit code of the command; `trainwreck --help` lists them.
    pub exit_code: u8,
}

/// A record in memory, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// The lines of the record.
    pub entries: Vec<RecordEntry>,
    /// The last line is incomplete, because the harness was killed while it wrote the line.
    pub truncated: bool,
}

/// Why a text is not a valid record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct RecordError {
    /// 1-based.
    pub line: usize,
    /// 1-based, in bytes.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl RecordEntry {
    /// The next line of a record, without its newline.
    pub fn to_line(&self, lines: &mut RecordLines) -> String {
        lines.next_line(&self.to_json())
    }

    fn to_json(&self) -> String {
        // Cannot fail: map keys are strings, and JSON writes a number that is not finite as null.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Record {
    /// Parses a record. An incomplete last line is dropped and sets `truncated`.
    ///
    /// # Errors
    ///
    /// Returns an error if a line is not a record entry, if lines are missing, repeated, out of order or
    /// changed, if the record has another format, or if it does not start with `run-started`.
    pub fn parse(text: &str) -> Result<Record, RecordError> {
        let mut record = Record::default();
        let mut numbered = RecordLines::default();
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let number = index + 1;
            match serde_json::from_str::<RecordEntry>(line) {
                Ok(entry) => {
                    let entry = with_known_format(entry, number)?;
                    numbered.check_next(line).map_err(|fault| RecordError::of_line(number, &fault))?;
                    record.entries.push(entry);
                }
                Err(_) if number == lines.len() && index > 0 && is_cut_off(text, line) => {
                    record.truncated = true
                }
                Err(error) => {
                    return Err(RecordError {
                        line: number,
                        column: error.column(),
                        message: format!("not a record entry: {error}"),
                    });
                }
            }
        }
        match record.entries.first().map(|entry| &entry.event) {
            Some(Event::RunStarted(_)) => Ok(record),
            _ => Err(RecordError {
                line: 1,
                column: 1,
                message: "the record does not start with `run-started`".into(),
            }),
        }
    }

    /// The text of the record's file.
    pub fn to_text(&self) -> String {
        let mut lines = RecordLines::default();
        self.entries.iter().map(|entry| entry.to_line(&mut lines) + "\n").collect()
    }
}

impl RecordError {
    fn of_line(line: usize, fault: &RecordLineFault) -> RecordError {
        RecordError { line, column: 1, message: fault.to_string() }
    }
}

/// Whether the text ends within its last line. The beginning of a JSON object is never one itself.
fn is_cut_off(text: &str, last_line: &str) -> bool {
    !text.ends_with('\n') && serde_json::from_str::<serde::de::IgnoredAny>(last_line).is_err()
}

/// The entry, unless it starts a record of another format.
fn with_known_format(entry: RecordEntry, line: usize) -> Result<RecordEntry, RecordError> {
    match &entry.event {
        Event::RunStarted(started) if started.format != RECORD_FORMAT => {
            let message = format!(
                "the record has format {}, and this trainwreck reads format {RECORD_FORMAT}; run the scenarios \
                 again, or analyze it with the trainwreck that wrote it (version {})",
                started.format, started.version
            );
            Err(RecordError { line, column: 1, message })
        }
        _ => Ok(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::{RECORD_FORMAT, Record};
    use crate::record_lines::RecordLines;

    fn started(format: u32) -> String {
        let machine = r#"{"kernel":"6","cores":1,"memory_bytes":1,"user":"root","mechanisms":[]}"#;
        format!(
            r#"{{"at_us":1,"event":{{"run-started":{{"format":{format},"version":"0.1.0","run":"r","started":"t","seed":1,"command":[],"machine":{machine},"scenarios":1}}}}}}"#
        )
    }

    const PLANNED: &str =
        r#"{"at_us":2,"scenario":"aa-01","event":{"trials-planned":{"total":3,"possible":9}}}"#;

    fn record_of(entries: &[&str]) -> String {
        let mut lines = RecordLines::default();
        entries.iter().map(|entry| lines.next_line(entry) + "\n").collect()
    }

    #[test]
    fn a_record_of_an_earlier_format_is_refused_with_both_numbers() {
        let left_out =
            r#"{"at_us":2,"scenario":"aa-01","event":{"left-out":{"trials":6,"why":"max-trials"}}}"#;
        for text in [format!("{}\n{left_out}\n", started(3)), record_of(&[&started(3), PLANNED])] {
            let error = Record::parse(&text).unwrap_err();
            assert_eq!(error.line, 1);
            assert!(error.message.contains("format 3") && error.message.contains("format 5"), "{error}");
        }
        let record = Record::parse(&record_of(&[&started(RECORD_FORMAT), PLANNED])).unwrap();
        assert_eq!(record.entries.len(), 2);
    }

    #[test]
    fn a_record_that_is_cut_anywhere_is_parsed_up_to_there() {
        let text = record_of(&[&started(RECORD_FORMAT), PLANNED, PLANNED]);
        let ends: Vec<usize> = text.match_indices('\n').map(|(end, _)| end).collect();
        let whole = Record::parse(&text).unwrap();
        assert_eq!(Record::parse(&whole.to_text()).unwrap(), whole);
        for cut in ends[0]..text.len() {
            let record = Record::parse(&text[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(record.entries.len(), whole, "{cut}");
            assert_eq!(record.truncated, !ends.contains(&cut) && !ends.contains(&(cut - 1)), "{cut}");
        }
    }

    #[test]
    fn a_damaged_line_is_named_by_its_number() {
        let text = record_of(&[&started(RECORD_FORMAT), PLANNED, PLANNED]);
        let lines: Vec<&str> = text.lines().collect();
        for (kept, line, message) in [
            (&[0, 2][..], 2, "line 2 is missing before it"),
            (&[0, 1, 1, 2], 3, "repeated or out of order"),
            (&[0, 2, 1], 2, "missing"),
            (&[1, 0, 2], 1, "line 1 is missing before it"),
        ] {
            let damaged: String = kept.iter().map(|index| format!("{}\n", lines[*index])).collect();
            let error = Record::parse(&damaged).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.message.contains(message), "{error}");
        }
        let changed = Record::parse(&text.replace("\"total\":3", "\"total\":1")).unwrap_err();
        assert!(changed.line == 2 && changed.message.contains("digest"), "{changed}");
    }
}
