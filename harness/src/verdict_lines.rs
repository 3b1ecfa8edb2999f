//! The lines that the console prints about a verdict: each failed expectation, with alike trials together, where the
//! fault was injected, what the target said, and how to repeat it. Pure; prints nothing.

use std::collections::BTreeMap;

use scenarios::{Event, Outcome, Reason, ReasonGroup, SaveControl, Verdict, ViolationKind};

/// At most this many groups of reasons are printed.
const MAX_GROUPS: usize = 3;
/// What failed trials did is kept for this many trials of a scenario.
const MAX_KEPT_TRIALS: usize = 400;
/// Longest printed finding, in characters. The report has the whole text.
const MAX_TEXT_CHARS: usize = 600;
const INDENT: &str = "            ";

/// What is known of the trials of a running scenario, as far as it explains a verdict.
#[derive(Debug, Default, Clone)]
pub(crate) struct TrialNotes {
    by_number: BTreeMap<u32, TrialNote>,
    /// What the target said in the control that failed.
    control_said: Option<String>,
    /// The command that repeats the scenario.
    repeat: String,
    has_one_trial: bool,
}

#[derive(Debug, Clone)]
struct TrialNote {
    what: String,
    evidence: Option<String>,
    said: Option<String>,
}

impl TrialNotes {
    /// Notes what an event says. `trial`: the trial that it is about.
    pub(crate) fn note(&mut self, trial: Option<u32>, event: &Event) {
        match event {
            Event::ScenarioStarted(started) => self.repeat.clone_from(&started.repeat),
            Event::Baseline(facts) => {
                let failing = |control: &&SaveControl| !control.is_sound();
                let control = facts.progress.save_controls.iter().find(failing);
                self.control_said = control.and_then(|control| control.said.clone());
            }
            Event::TrialsPlanned(planned) => self.has_one_trial = planned.to_run() == 1,
            Event::TrialEnded(facts) if self.by_number.len() < MAX_KEPT_TRIALS => {
                let note = TrialNote {
                    what: facts.what.clone(),
                    evidence: facts.evidence.first().cloned(),
                    said: facts.said.clone().filter(|_| facts.outcome != Outcome::Recovered),
                };
                trial.map(|trial| self.by_number.insert(trial, note));
            }
            Event::TrialDiscarded => {
                trial.map(|trial| self.by_number.remove(&trial));
            }
            _ => {}
        }
    }

    /// The lines about a verdict. With `ablating`, a violation is the good result, and one line is enough.
    pub(crate) fn lines(&self, verdict: &Verdict, ablating: bool) -> Vec<String> {
        match verdict {
            Verdict::Survived => Vec::new(),
            Verdict::Inconclusive { why } | Verdict::Skipped { why } => vec![line(INDENT, why)],
            Verdict::Violated { reasons } if ablating => reasons.iter().take(1).map(one_line).collect(),
            Verdict::Violated { reasons } => self.violation_lines(reasons),
        }
    }

    fn violation_lines(&self, reasons: &[Reason]) -> Vec<String> {
        let groups = ReasonGroup::of(reasons);
        let mut lines = Vec::new();
        let mut expectation = "";
        let mut told = Vec::new();
        for group in groups.iter().take(MAX_GROUPS) {
            if group.first.expectation != expectation {
                expectation = &group.first.expectation;
                lines.push(line(INDENT, expectation));
            }
            let found = format!("{}{}", group.trials_text(), group.first.found);
            lines.push(line(&format!("{INDENT}  "), &found));
            // One trial may fail several expectations.
            if group.first.trial.is_none() || !told.contains(&group.first.trial) {
                lines.extend(self.detail_lines(group));
            }
            told.push(group.first.trial);
        }
        if groups.len() > MAX_GROUPS {
            lines.push(format!("{INDENT}and {} other findings, in the report", groups.len() - MAX_GROUPS));
        }
        lines
    }

    /// Where the fault of the first trial was injected, what the target said, and how to repeat it.
    fn detail_lines(&self, group: &ReasonGroup<'_>) -> Vec<String> {
        let note = group.first.trial.and_then(|trial| self.by_number.get(&trial));
        let injected = note.map(|note| note.evidence.clone().unwrap_or_else(|| note.what.clone()));
        let said = match group.first.kind {
            ViolationKind::Control => self.control_said.clone(),
            _ => note.and_then(|note| note.said.clone()),
        };
        let repeat = group.first.trial.map(|trial| match self.has_one_trial {
            true => self.repeat.clone(),
            false => format!("{} --trial {trial}", self.repeat),
        });
        let indent = format!("{INDENT}    ");
        let labelled = |label: &str, text: &str| line(&format!("{indent}{label:<10}"), text);
        let mut lines: Vec<String> = injected.iter().map(|text| labelled("injected:", text)).collect();
        lines.extend(said.iter().map(|text| labelled("it said:", text)));
        // A command is copied as a whole.
        lines.extend(repeat.map(|repeat| format!("{indent}{:<10}{repeat}", "repeat:")));
        lines
    }
}

fn one_line(reason: &Reason) -> String {
    let trial = reason.trial.map(|trial| format!(" (trial {trial})")).unwrap_or_default();
    line(INDENT, &format!("{}{trial}: {}", reason.expectation, reason.found))
}

/// One line of bounded length, which a terminal wraps. In a log it can be searched.
fn line(indent: &str, text: &str) -> String {
    let text = reports::clean(text);
    let cut: String = text.chars().take(MAX_TEXT_CHARS).collect();
    let end = if text.chars().nth(MAX_TEXT_CHARS).is_some() { " .." } else { "" };
    format!("{indent}{cut}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(trial: Option<u32>, found: &str) -> Reason {
        let expectation = "always: {outcome: [recovered]}".to_owned();
        Reason { expectation, trial, found: found.into(), kind: ViolationKind::Harm }
    }

    #[test]
    fn alike_trials_are_told_once_with_how_to_repeat_the_first() {
        let note = TrialNote {
            what: "crash at call 3".into(),
            evidence: Some("every process was killed before write(a)".into()),
            said: Some("EOFError: Ran out of input".into()),
        };
        let notes = TrialNotes {
            by_number: BTreeMap::from([(2, note)]),
            repeat: "trainwreck run a.yaml".into(),
            ..TrialNotes::default()
        };
        let other = Reason { expectation: "always: same-as-baseline".into(), ..reason(Some(2), "no value") };
        let reasons =
            [reason(Some(2), "crashed: exit code 1"), reason(Some(5), "crashed: exit code 1"), other];
        let lines = notes.lines(&Verdict::Violated { reasons: reasons.to_vec() }, false);
        insta::assert_snapshot!(lines.join("\n"), @r"
                    always: {outcome: [recovered]}
                      2 trials (2, 5): crashed: exit code 1
                        injected: every process was killed before write(a)
                        it said:  EOFError: Ran out of input
                        repeat:   trainwreck run a.yaml --trial 2
                    always: same-as-baseline
                      trial 2: no value
        ");
    }

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        let long = line("  ", &"word ".repeat(1000));
        assert!(long.len() < 700 && long.ends_with(" .."), "{long}");
        assert!(
            !line("- ", "a\nb\u{1b}[2J").contains(char::is_control),
            "a line of a target makes no others"
        );
    }
}
