//! How many trials of a scenario were tried, of how many, and what left out the others: counted from the
//! events of a record, with the one text that every report shows. Judges nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::not_enumerated::counted;
use crate::record::{Event, Record};
use crate::trials_planned::{TrialBound, TrialUnit, TrialsPlanned, grouped};

/// The trials of one scenario: planned and tried. Filled from the events of a record, in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrialCounts {
    planned: Option<TrialsPlanned>,
    tried: u32,
    not_reached: u32,
    /// Whether no other trial was started, because one showed what all were to show.
    is_stopped: bool,
}

impl TrialCounts {
    /// The counts of each scenario of a record.
    pub fn by_scenario(record: &Record) -> BTreeMap<&str, TrialCounts> {
        let mut counts: BTreeMap<&str, TrialCounts> = BTreeMap::new();
        for entry in &record.entries {
            if let Some(id) = &entry.scenario {
                counts.entry(id).or_default().count(&entry.event);
            }
        }
        counts
    }

    /// Counts an event of the scenario or of one of its trials.
    pub fn count(&mut self, event: &Event) {
        match event {
            Event::TrialsPlanned(planned) => self.planned = Some(*planned),
            Event::TrialEnded(facts) if facts.is_not_reached() => self.not_reached += 1,
            Event::TrialEnded(_) => self.tried += 1,
            // It is counted again when it ends again.
            Event::TrialDiscarded => self.tried = self.tried.saturating_sub(1),
            Event::TrialsStopped { .. } => self.is_stopped = true,
            _ => {}
        }
    }

    /// The number of trials that ended, without those that did not reach the call of a fault.
    pub fn tried(&self) -> u64 {
        self.tried.into()
    }

    /// The number of trials that ended without reaching the call of a fault, although they were repeated.
    pub fn not_reached(&self) -> u64 {
        self.not_reached.into()
    }

    fn ended(&self) -> u64 {
        self.tried() + self.not_reached()
    }

    /// The number of trials that were planned to run. 0 if it is not known.
    pub fn to_run(&self) -> u64 {
        self.planned.map_or(0, |planned| planned.to_run().into())
    }

    /// The number of trials that there are without any bound.
    pub fn possible(&self) -> u64 {
        self.planned.map_or(0, |planned| planned.possible()).max(self.ended())
    }

    /// The number of trials that a bound or `--trial` left out.
    pub fn left_out(&self) -> u64 {
        self.possible() - self.to_run().max(self.ended()).min(self.possible())
    }

    /// The number of trials that were planned, but have not ended.
    pub fn not_run(&self) -> u64 {
        self.to_run().saturating_sub(self.ended())
    }

    /// Why planned trials have not ended: not needed, as the guard was caught, or else not run.
    fn not_run_text(&self) -> Option<String> {
        let why = if self.is_stopped { "not needed" } else { "not run" };
        (self.not_run() > 0).then(|| format!("{} {why}", grouped(self.not_run())))
    }

    /// The number of candidates for crash states that fixed bounds left out.
    pub fn not_enumerated(&self) -> u64 {
        self.planned.map_or(0, |planned| planned.not_enumerated)
    }

    /// Whether trials are known, so that there is something to show.
    pub fn is_empty(&self) -> bool {
        self.planned.is_none() && self.ended() == 0
    }

    /// What left trials out, such as `max-trials` or `only --trial 3`. Empty if nothing did.
    pub fn left_out_by(&self) -> String {
        let Some(planned) = self.planned.filter(|_| self.left_out() > 0) else { return String::new() };
        match (planned.only, planned.bound) {
            (Some(only), _) => format!("only --trial {only}"),
            (None, Some(bound)) => bound.name().to_owned(),
            (None, None) => "a bound".to_owned(),
        }
    }
}

/// Such as `41 trials`, `90 of 402 crash states (max-trials)`, `1 of 228 trials (only --trial 3)`. Empty if
/// no trial was planned.
impl fmt::Display for TrialCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return Ok(());
        }
        let unit = self.planned.map(|planned| planned.unit).unwrap_or_default();
        let (tried, possible) = (self.tried(), self.possible());
        write!(f, "{}", grouped(tried))?;
        if tried < possible {
            write!(f, " of {}", grouped(possible))?;
        }
        write!(f, " {}", unit.name(possible))?;
        let not_reached =
            (self.not_reached() > 0).then(|| format!("{} not reached", grouped(self.not_reached())));
        let not_enumerated = (self.not_enumerated() > 0)
            .then(|| format!("and {} candidates not enumerated", counted(self.not_enumerated())));
        let left_out = Some(self.left_out_by()).filter(|by| !by.is_empty());
        let notes: Vec<String> = left_out
            .into_iter()
            .chain(self.not_run_text())
            .chain(not_reached)
            .chain(not_enumerated)
            .collect();
        if notes.is_empty() { Ok(()) } else { write!(f, " ({})", notes.join(", ")) }
    }
}

/// The trials of all scenarios of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrialTotals {
    /// Trials that ended.
    pub tried: u64,
    /// Trials that `max-trials` or `--max-trials` left out.
    pub left_out: u64,
    /// Trials that `--trial` left out.
    pub not_selected: u64,
    /// Trials that the limit of a scenario left out, although all were asked for.
    pub beyond_limit: u64,
    /// Planned trials that have not ended.
    pub not_run: u64,
    /// Planned trials of `ablate` that were not started, because the guard was caught.
    pub not_needed: u64,
    /// Trials that did not reach the call of a fault, although they were repeated.
    pub not_reached: u64,
    /// Candidates for crash states that fixed bounds left out.
    pub not_enumerated: u64,
}

impl TrialTotals {
    /// Adds the trials of one scenario.
    pub fn add(&mut self, counts: &TrialCounts) {
        self.tried += counts.tried();
        let not_run = if counts.is_stopped { &mut self.not_needed } else { &mut self.not_run };
        *not_run += counts.not_run();
        self.not_reached += counts.not_reached();
        self.not_enumerated += counts.not_enumerated();
        let planned = counts.planned.unwrap_or_default();
        let left_out = match (planned.only, planned.bound) {
            (Some(_), _) => &mut self.not_selected,
            (None, Some(TrialBound::Limit)) => &mut self.beyond_limit,
            (None, _) => &mut self.left_out,
        };
        *left_out = left_out.saturating_add(counts.left_out());
    }
}

impl<'a> FromIterator<&'a TrialCounts> for TrialTotals {
    fn from_iter<I: IntoIterator<Item = &'a TrialCounts>>(all: I) -> TrialTotals {
        let mut totals = TrialTotals::default();
        all.into_iter().for_each(|counts| totals.add(counts));
        totals
    }
}

/// Such as `736 trials tried, 33,664 left out by bounds; --max-trials all tries them`.
impl fmt::Display for TrialTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} tried", grouped(self.tried), TrialUnit::Trials.name(self.tried))?;
        let parts = [
            (self.not_run, "planned but not run"),
            (self.not_needed, "not needed, as the guard was caught; --keep-going tries them"),
            (self.not_reached, "not reached"),
            (self.not_selected, "left out by --trial"),
            (self.beyond_limit, "left out by the limit of a scenario"),
            (self.left_out, "left out by bounds; --max-trials all tries them"),
        ];
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {} {what}", grouped(count))?;
        }
        if parts.iter().all(|(count, _)| *count == 0) {
            write!(f, ", none left out")?;
        }
        if self.not_enumerated > 0 {
            write!(f, "; {} candidates for crash states not enumerated", counted(self.not_enumerated))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(planned: TrialsPlanned, tried: u32) -> TrialCounts {
        TrialCounts { planned: Some(planned), tried, not_reached: 0, is_stopped: false }
    }

    const CUT: TrialsPlanned = TrialsPlanned {
        total: 90,
        only: None,
        possible: 402,
        unit: TrialUnit::CrashStates,
        bound: Some(TrialBound::Scenario),
        not_enumerated: 0,
    };

    #[test]
    fn the_text_says_what_was_tried_of_how_many_and_what_left_out_the_others() {
        let whole = TrialsPlanned { total: 41, possible: 41, ..TrialsPlanned::default() };
        let calls = TrialsPlanned { unit: TrialUnit::SystemCalls, ..whole };
        let optional = TrialsPlanned { bound: Some(TrialBound::Option), ..CUT };
        let limited = TrialsPlanned { bound: Some(TrialBound::Limit), ..CUT };
        let fixed = TrialsPlanned { not_enumerated: 1024, ..CUT };
        for (planned, tried, expected) in [
            (whole, 41, "41 trials"),
            (whole, 12, "12 of 41 trials (29 not run)"),
            (whole, 0, "0 of 41 trials (41 not run)"),
            (TrialsPlanned { total: 1, possible: 1, ..whole }, 1, "1 trial"),
            (calls, 41, "41 system calls"),
            (TrialsPlanned { only: Some(3), ..whole }, 1, "1 of 41 trials (only --trial 3)"),
            (TrialsPlanned { only: Some(300), ..CUT }, 1, "1 of 402 crash states (only --trial 300)"),
            (CUT, 90, "90 of 402 crash states (max-trials)"),
            (CUT, 7, "7 of 402 crash states (max-trials, 83 not run)"),
            (optional, 90, "90 of 402 crash states (--max-trials)"),
            (limited, 90, "90 of 402 crash states (the limit of a scenario)"),
            (fixed, 90, "90 of 402 crash states (max-trials, and 1,024 candidates not enumerated)"),
        ] {
            assert_eq!(counts(planned, tried).to_string(), expected);
        }
        assert_eq!(TrialCounts::default().to_string(), "");
        let not_reached = TrialCounts { not_reached: 3, ..counts(whole, 38) };
        assert_eq!(not_reached.to_string(), "38 of 41 trials (3 not reached)");
        let not_reached = [not_reached].iter().collect::<TrialTotals>().to_string();
        assert_eq!(not_reached, "38 trials tried, 3 not reached");
        let stopped = TrialCounts { is_stopped: true, ..counts(CUT, 7) };
        assert_eq!(stopped.to_string(), "7 of 402 crash states (max-trials, 83 not needed)");
        let stopped = [stopped, counts(whole, 40)].iter().collect::<TrialTotals>().to_string();
        assert_eq!(
            stopped,
            "47 trials tried, 1 planned but not run, 83 not needed, as the guard was caught; --keep-going tries them, \
             312 left out by bounds; --max-trials all tries them"
        );
    }

    #[test]
    fn the_total_separates_what_all_trials_would_try_from_what_they_would_not() {
        let whole = TrialsPlanned { total: 41, possible: 41, ..TrialsPlanned::default() };
        let total = |all: &[TrialCounts]| all.iter().collect::<TrialTotals>().to_string();
        assert_eq!(total(&[counts(whole, 41)]), "41 trials tried, none left out");
        let bounded = [counts(whole, 41), counts(CUT, 90)];
        assert_eq!(total(&bounded), "131 trials tried, 312 left out by bounds; --max-trials all tries them");
        let only = [counts(TrialsPlanned { only: Some(1), ..CUT }, 1)];
        assert_eq!(total(&only), "1 trial tried, 401 left out by --trial");
        let cut_short = total(&[counts(whole, 11)]);
        assert_eq!(cut_short, "11 trials tried, 30 planned but not run");
        let limited = total(&[counts(TrialsPlanned { bound: Some(TrialBound::Limit), ..CUT }, 90)]);
        assert!(!limited.contains("--max-trials all"), "{limited}");
    }

    #[test]
    fn a_trial_beyond_the_bound_can_be_asked_for_and_one_beyond_the_last_cannot() {
        assert_eq!(TrialsPlanned { only: Some(402), ..CUT }.to_run(), 1);
        assert_eq!(TrialsPlanned { only: Some(403), ..CUT }.to_run(), 0);
        assert_eq!(TrialsPlanned { only: Some(0), ..CUT }.to_run(), 0);
        assert_eq!(CUT.to_run(), 90);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 33664, 1234567].map(grouped), ["0", "999", "1,000", "33,664", "1,234,567"]);
    }
}
