//! The result of exploring the crash states of one command, as `explore --json` writes it. Knows nothing of
//! how states are found, tried or shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::exploration_note::ExplorationNote;
use crate::finding::Finding;
use crate::forked_recoveries::ForkedRecoveries;
use crate::not_enumerated::{EnumerationRule, NotEnumerated, counted};
use crate::recovery_check::RecoveryCheck;
use crate::sandbox_hint::SandboxHint;
use crate::speed::{speed_text, time_text};
use crate::trials_planned::grouped;
use crate::verdict::Outcome;

/// The format that [`Exploration::to_json`] writes and [`Exploration::parse`] reads.
pub const EXPLORATION_FORMAT: u32 = 4;

/// What ended the target: a kill of its processes, or a power loss under some model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashCategory {
    /// The target is killed, and the machine keeps running.
    Process,
    /// The machine loses power.
    Power,
}

impl CrashCategory {
    /// Both, in the order in which results are shown.
    pub const ALL: [CrashCategory; 2] = [CrashCategory::Process, CrashCategory::Power];

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            CrashCategory::Process => "process",
            CrashCategory::Power => "power",
        }
    }
}

/// The result of an exploration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exploration {
    /// [`EXPLORATION_FORMAT`].
    pub version: u32,
    /// What decided, besides the exit code, whether a recovery is right. Sorted.
    pub checks: Vec<RecoveryCheck>,
    /// Number of recorded operations of each kind, such as `rename` -> 4.
    pub operations: BTreeMap<String, u64>,
    /// Number of crash states that the file-system models allow, before equal trees are merged.
    pub candidates: BTreeMap<CrashCategory, u64>,
    /// Number of different file trees among the candidates.
    pub distinct: BTreeMap<CrashCategory, u64>,
    /// Number of different file trees that [`max_states`](Exploration::max_states) left out.
    pub left_out: BTreeMap<CrashCategory, u64>,
    /// Number of candidates that the rules of the enumeration left out. What states they lead to is not known.
    /// Each model is counted. [`MAX_COUNTED_CANDIDATES`](crate::MAX_COUNTED_CANDIDATES) stands for more.
    #[serde(default)]
    pub not_enumerated: BTreeMap<CrashCategory, u64>,
    /// The same by rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_enumerated_by_rule: BTreeMap<EnumerationRule, NotEnumerated>,
    /// Number of different file trees of both categories together. It is `tried`, `untried` and
    /// `states_left_out` together, unless only one state was asked for.
    pub states: u64,
    /// Number of different file trees of both categories together that `max_states` left out.
    pub states_left_out: u64,
    /// The largest number of states that are tried. `None`: all.
    pub max_states: Option<u64>,
    /// The name of the only state that was tried, if the user asked for one. The others are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_state: Option<String>,
    /// Number of states with each outcome. A state that several models allow counts once, with its worst
    /// outcome.
    pub outcomes: BTreeMap<CrashCategory, BTreeMap<Outcome, u64>>,
    /// The recoveries from undamaged files, which were run before those from crash states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// Number of acknowledged saves whose files no control recovered from.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub controls_left_out: u64,
    /// How recoveries were compared with new processes, if they were forked from a Python that has imported the
    /// libraries. `None`: each was a new process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked: Option<ForkedRecoveries>,
    /// One for each cause and kind of failure. Those that a control shows come first, then the one with the most states.
    pub findings: Vec<Finding>,
    /// Files and directories that were not synced before a save was acknowledged, or never; one line each.
    pub never_synced: Vec<String>,
    /// Paths outside the recorded directories that were opened for writing.
    pub outside: Vec<String>,
    /// What the target met in the sandbox during the recorded run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandbox_hints: Vec<SandboxHint>,
    /// What limits what the result shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<ExplorationNote>,
    /// Features, such as io_uring, that were refused so that the target uses ordinary calls.
    pub refused_calls: Vec<String>,
    /// Number of states that were tried. Several crashes can leave the same state.
    pub tried: u64,
    /// Number of states that were not tried, because the exploration was interrupted or its time was over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untried: u64,
    /// The time of the whole exploration in seconds, if it was bounded and over before all states were tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time_s: Option<f64>,
    /// Number of recoveries that ran at the same time.
    pub jobs: u64,
    /// Time for trying all states, without shrinking.
    pub seconds: f64,
    /// Time of the recorded run.
    pub recording_seconds: f64,
    /// Number of states that were tried per second.
    pub states_per_second: f64,
    /// The first crash, if these are the states of a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Number of kills from which the target recovered, so that its recovery could crash too. 0 if no second
    /// crash was asked for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recovered_kills: u64,
    /// The explorations of second crashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub second: Vec<Exploration>,
    /// Number of recoveries whose second crashes were not tried, because the exploration was interrupted or its time
    /// was over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untried_recoveries: u64,
    /// Number of recoveries whose second crashes were not tried, because the recovery failed or exceeded its time
    /// limit while it was recorded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unrecorded_recoveries: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a text is not an exploration that this version can read.
#[derive(Debug, thiserror::Error)]
pub enum ExplorationError {
    /// The text is not JSON, or a field is missing or of another type.
    #[error("this is not the result of `trainwreck explore --json`; write it again")]
    Json(#[source] serde_json::Error),
    /// Another version of Trainwreck wrote it.
    #[error(
        "the exploration has format {found}, but this version reads format {EXPLORATION_FORMAT}; explore \
         the command again"
    )]
    OtherFormat {
        /// The format of the text.
        found: u32,
    },
}

/// The only field that every format has.
#[derive(Deserialize)]
struct FormatOnly {
    version: u32,
}

impl Exploration {
    /// Parses what [`to_json`](Exploration::to_json) returns.
    ///
    /// # Errors
    /// The text is not JSON of this shape, or has another format.
    pub fn parse(text: &str) -> Result<Exploration, ExplorationError> {
        let FormatOnly { version: found } = serde_json::from_str(text).map_err(ExplorationError::Json)?;
        if found != EXPLORATION_FORMAT {
            return Err(ExplorationError::OtherFormat { found });
        }
        serde_json::from_str(text).map_err(ExplorationError::Json)
    }

    /// The exploration as indented JSON with a final newline.
    pub fn to_json(&self) -> String {
        // Cannot fail: map keys are strings, and JSON writes a number that is not finite as null.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Number of states of one category that were tried.
    pub fn tried_in(&self, category: CrashCategory) -> u64 {
        self.outcomes.get(&category).map_or(0, |outcomes| outcomes.values().sum())
    }

    /// What was not tried, and why: one line for each reason. Empty if every enumerated state was tried.
    pub fn left_out_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(state) = &self.only_state {
            let option = if self.after.is_some() { "--second-state" } else { "--state" };
            lines.push(format!("only state {state} was tried ({option}); the others were not counted"));
        }
        if self.states_left_out > 0 {
            let max = self.max_states.map(|max| format!(" {}", grouped(max))).unwrap_or_default();
            lines.push(format!(
                "{} of {} states left out by --max-states{max}; --max-states all tries them",
                grouped(self.states_left_out),
                grouped(self.states)
            ));
        }
        if self.untried > 0 {
            let why = self.max_time_s.map_or("interrupted".to_owned(), |seconds| {
                format!("stopped after {} (--max-time)", time_text(seconds))
            });
            lines.push(format!(
                "{why}: {} of {} states; {} states were not tried",
                grouped(self.tried),
                grouped(self.tried + self.untried),
                grouped(self.untried)
            ));
        }
        if self.unrecorded_recoveries > 0 {
            lines.push(format!(
                "second crashes were not tried in {} recoveries, which did not end well, or exceeded the time \
                 limit (--timeout), while they were recorded",
                grouped(self.unrecorded_recoveries)
            ));
        }
        let not_enumerated: u64 = self.not_enumerated.values().sum();
        if not_enumerated > 0 {
            let by_rule = self.not_enumerated_by_rule.iter();
            let by_rule: Vec<String> =
                by_rule.map(|(rule, count)| format!("{count} {}", rule.description())).collect();
            let by_rule =
                if by_rule.is_empty() { String::new() } else { format!(": {}", by_rule.join("; ")) };
            lines.push(format!("{} candidates not enumerated{by_rule}", counted(not_enumerated)));
        }
        lines
    }

    /// How fast the states were tried, in words.
    pub fn speed(&self) -> String {
        speed_text(self.tried, self.seconds)
    }

    /// How the recoveries from undamaged files went, in one line. `None`: there were none.
    pub fn controls_line(&self) -> Option<String> {
        let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
        for control in &self.controls {
            *outcomes.entry(control.outcome).or_default() += 1;
        }
        let counts: Vec<String> =
            outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        let left_out = match self.controls_left_out {
            0 => String::new(),
            saves => format!("; the files after {} other saves were left out", grouped(saves)),
        };
        (!counts.is_empty())
            .then(|| format!("controls (recoveries from undamaged files): {}{left_out}", counts.join(", ")))
    }

    /// Whether some finding of this exploration or of a second crash is confirmed.
    pub fn has_confirmed_findings(&self) -> bool {
        self.findings.iter().any(Finding::is_confirmed)
            || self.second.iter().any(Exploration::has_confirmed_findings)
    }

    /// Whether no state of this exploration or of a second crash is a finding.
    pub fn has_no_findings(&self) -> bool {
        self.findings.is_empty() && self.second.iter().all(Exploration::has_no_findings)
    }

    /// Whether something about the recording of this exploration or of a second crash makes the result weaker
    /// than its outcomes say.
    pub fn is_weakened(&self) -> bool {
        self.notes.iter().any(ExplorationNote::weakens_result)
            || self.second.iter().any(Exploration::is_weakened)
    }

    /// Whether a recovery of this exploration or of a second crash ended with exit code 0, and nothing could
    /// tell whether that is right.
    pub fn has_unjudged(&self) -> bool {
        self.outcomes.values().any(|outcomes| outcomes.contains_key(&Outcome::NotJudged))
            || self.second.iter().any(Exploration::has_unjudged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::{Cause, FailureSubject};
    use crate::control::ControlFiles;
    use crate::effect::CrashModel;
    use crate::finding::{Confirmation, FailingControls, Fate, MessageCount, OperationLine, OutcomeCount};

    fn exploration() -> Exploration {
        let finding = Finding {
            cause: Cause::NoFsyncBeforeRename,
            outcome: Outcome::Crashed,
            outcomes: vec![OutcomeCount { outcome: Outcome::Crashed, states: 3 }],
            under: vec![CrashModel::Btrfs, CrashModel::Ext4],
            states: 3,
            confirmation: Some(Confirmation { failed: 2, tried: 2, other: None }),
            between: ["write(a)".into(), "rename(a, b)".into()],
            operations: vec![OperationLine { text: "   1  write(a)  lost".into(), fate: Fate::HalfLost }],
            difference: vec!["~ b: 0 bytes instead of 4".into()],
            error: String::new(),
            messages: vec![MessageCount { line: "no data".into(), states: 2 }],
            controls: Some(FailingControls { failing: 1, tried: 2, first: ControlFiles::Finished }),
            advice: Cause::NoFsyncBeforeRename.advice(FailureSubject::File).into(),
            state: "2-1".into(),
            repeat: "trainwreck explore --state 2-1".into(),
        };
        Exploration {
            version: EXPLORATION_FORMAT,
            checks: vec![RecoveryCheck::FinalValue],
            operations: [("write".to_owned(), 1)].into(),
            candidates: [(CrashCategory::Power, 9)].into(),
            distinct: [(CrashCategory::Power, 4)].into(),
            left_out: BTreeMap::new(),
            not_enumerated: BTreeMap::new(),
            not_enumerated_by_rule: BTreeMap::new(),
            states: 4,
            states_left_out: 0,
            max_states: Some(20_000),
            only_state: None,
            outcomes: [(CrashCategory::Power, [(Outcome::Crashed, 3), (Outcome::Recovered, 1)].into())]
                .into(),
            controls: vec![Control {
                files: ControlFiles::Saved { step: 3 },
                outcome: Outcome::Recovered,
                state: "4".into(),
            }],
            controls_left_out: 1200,
            findings: vec![finding],
            never_synced: Vec::new(),
            outside: vec!["/tmp/x".into()],
            sandbox_hints: vec![SandboxHint::WroteOutside { path: "/tmp".into(), count: 2 }],
            notes: vec![ExplorationNote::BufferedOutput { lines: 2 }],
            forked: Some(ForkedRecoveries { recovered: 30, compared: 5 }),
            untried: 0,
            max_time_s: None,
            refused_calls: Vec::new(),
            tried: 4,
            jobs: 2,
            seconds: 0.5,
            recording_seconds: 0.25,
            states_per_second: 8.0,
            after: None,
            untried_recoveries: 0,
            unrecorded_recoveries: 0,
            recovered_kills: 0,
            second: Vec::new(),
        }
    }

    #[test]
    fn a_written_exploration_is_read_back_unchanged() {
        let second = Exploration { after: Some("killed".into()), ..exploration() };
        let written = Exploration { second: vec![second], ..exploration() };
        assert_eq!(Exploration::parse(&written.to_json()).unwrap(), written);
        assert!(written.to_json().contains(r#""fate": "half-lost""#));
    }

    #[test]
    fn the_line_about_controls_counts_their_outcomes_and_those_that_were_left_out() {
        let line = exploration().controls_line().unwrap();
        assert!(line.contains("1 recovered") && line.contains("1,200 other saves"), "{line}");
        assert_eq!(Exploration { controls: Vec::new(), ..exploration() }.controls_line(), None);
    }

    #[test]
    fn each_reason_for_which_states_were_not_tried_has_its_line() {
        assert_eq!(exploration().left_out_lines(), [""; 0]);
        let bounded = Exploration {
            states: 1719,
            states_left_out: 1699,
            max_states: Some(20),
            untried: 5,
            not_enumerated: [(CrashCategory::Power, 7)].into(),
            not_enumerated_by_rule: [(
                EnumerationRule::NameSets,
                NotEnumerated { count: 7, at_least: false },
            )]
            .into(),
            unrecorded_recoveries: 2,
            ..exploration()
        };
        let lines = bounded.left_out_lines().join("\n");
        assert!(lines.starts_with("1,699 of 1,719 states left out by --max-states 20; "), "{lines}");
        assert!(lines.contains("5 states were not tried") && lines.contains("7 candidates not"), "{lines}");
        assert!(lines.contains("second crashes were not tried in 2 recoveries"), "{lines}");
        let only = Exploration { only_state: Some("2-1".into()), ..exploration() };
        assert!(only.left_out_lines().join("").contains("only state 2-1 was tried (--state)"));
        let second = Exploration { after: Some("killed".into()), ..only };
        assert!(second.left_out_lines().join("").contains("only state 2-1 was tried (--second-state)"));
        assert_eq!(bounded.tried_in(CrashCategory::Power), 4);
        assert_eq!(bounded.tried_in(CrashCategory::Process), 0);
    }

    #[test]
    fn a_finding_is_confirmed_only_by_repetitions_with_the_same_outcome() {
        let seen = |failed, tried, other| Some(Confirmation { failed, tried, other });
        for (outcome, confirmation, is_confirmed) in [
            (Outcome::Crashed, None, false),
            (Outcome::Crashed, seen(1, 1, None), false),
            (Outcome::Crashed, seen(2, 2, None), true),
            (Outcome::Crashed, seen(3, 4, Some(Outcome::Recovered)), false),
            (Outcome::Hung, seen(2, 2, None), true),
            (Outcome::Hung, seen(1, 2, Some(Outcome::Crashed)), false),
            (Outcome::Hung, None, false),
        ] {
            let mut explored = exploration();
            explored.findings[0].outcome = outcome;
            explored.findings[0].confirmation = confirmation;
            assert_eq!(explored.has_confirmed_findings(), is_confirmed, "{outcome} {confirmation:?}");
            assert_eq!(explored.findings[0].doubt().is_none(), is_confirmed, "{outcome} {confirmation:?}");
            let first = Exploration { findings: Vec::new(), second: vec![explored], ..exploration() };
            assert_eq!(first.has_confirmed_findings(), is_confirmed, "{outcome} {confirmation:?}");
            assert_eq!(Exploration::parse(&first.to_json()).unwrap(), first);
        }
        let mut explored = exploration();
        explored.findings[0].confirmation = seen(1, 4, Some(Outcome::Recovered));
        let doubt = explored.findings[0].doubt().unwrap();
        assert!(doubt.contains("1 of 4 recoveries") && doubt.contains("another was recovered"), "{doubt}");
    }

    #[test]
    fn a_note_about_the_first_or_the_second_recording_weakens_the_result() {
        let strong = Exploration { notes: Vec::new(), ..exploration() };
        assert!(!strong.is_weakened() && exploration().is_weakened());
        assert!(Exploration { second: vec![exploration()], ..strong }.is_weakened());
    }

    #[test]
    fn another_format_and_another_shape_are_told_apart() {
        let old = exploration().to_json().replace(r#""version": 4"#, r#""version": 2"#);
        assert!(matches!(Exploration::parse(&old), Err(ExplorationError::OtherFormat { found: 2 })));
        assert!(matches!(Exploration::parse("{}"), Err(ExplorationError::Json(_))));
        let incomplete = exploration().to_json().replace(r#""tried""#, r#""tired""#);
        assert!(matches!(Exploration::parse(&incomplete), Err(ExplorationError::Json(_))));
    }

    #[test]
    fn the_id_of_a_category_is_its_name_in_json() {
        for category in CrashCategory::ALL {
            assert_eq!(serde_json::to_string(&category).unwrap(), format!("\"{}\"", category.name()));
        }
    }
}
