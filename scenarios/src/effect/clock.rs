//! The fault `clock`: another wall clock.

use std::time::Duration;

use jiff::Timestamp;

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::{LeafError, leaf};
use crate::yaml::spanned::Spanned;

const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// Units of a change, in nanoseconds. The largest one that fits is shown.
const UNITS: [(&str, i64); 5] = [
    ("d", 86_400 * NANOS_PER_SECOND),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("min", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
    ("ms", 1_000_000),
];
/// Largest change: some 50 years, so that the time stays after 1970.
const MAX_CHANGE_DAYS: i64 = 18_250;
/// First second that the clock can't be set to: the year 2200.
const END_OF_TIME_S: i64 = 7_258_118_400;

fault!(
    /// Gives the target another wall clock. The machine's clock stays, and so do the target's monotonic clock and the
    /// times of its files. One of the keys must be given.
    ClockDraft {
        /// How far the clock is set back or ahead, one trial each: `[-6 min, +1 d]`. A persistent fault sets it again.
        by: Option<Spanned<Vec<ClockStep>>>,
        /// The time that the clock is set to, one trial each: `['1970-01-02T00:00:00Z']`. It goes on from there.
        to: Option<Spanned<Vec<ClockTime>>>,
    }
);

leaf!(
    ClockStep(i64),
    parse_step,
    r"^[+-]\d+ ?(ms|s|min|h|d)$",
    "How far the clock is set: `-6 min` back, `+1 d` ahead.",
    ["string"]
);
leaf!(
    ClockTime(Timestamp),
    parse_time,
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)$",
    "A time with its zone: `2038-01-19T03:14:00Z`.",
    ["string"]
);

/// One change of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockChange {
    /// By so many nanoseconds. Negative: back.
    By(i64),
    /// To a time.
    To(Timestamp),
}

/// Gives the target another wall clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    /// The changes. Only one in a planned trial.
    pub changes: Vec<ClockChange>,
}

impl std::fmt::Display for ClockChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = match self {
            ClockChange::To(time) => return write!(f, "set to {time}"),
            ClockChange::By(nanos) => *nanos,
        };
        let fits = |unit: &&(&str, i64)| nanos % unit.1 == 0;
        let (unit, scale) = UNITS.iter().find(fits).unwrap_or(&UNITS[UNITS.len() - 1]);
        let direction = if nanos < 0 { "back" } else { "ahead" };
        write!(f, "{} {unit} {direction}", (nanos / scale).abs())
    }
}

fn parse_step(text: &str) -> Result<i64, LeafError> {
    let wrong = || {
        LeafError::not(text, "a change of the clock such as `-6 min` or `+1 d` (ms, s, min, h, d)")
            .help(format!("write a sign, a number and a unit; at most {MAX_CHANGE_DAYS} days"))
    };
    let (is_back, rest) = match text.split_at_checked(1) {
        Some(("-", rest)) => (true, rest),
        Some(("+", rest)) => (false, rest),
        _ => return Err(wrong()),
    };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, unit) = (&rest[..digits], rest[digits..].trim());
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    let nanos = digits.parse::<i64>().ok().zip(scale).and_then(|(number, scale)| number.checked_mul(scale));
    let max = MAX_CHANGE_DAYS * UNITS[0].1;
    let nanos = nanos.filter(|nanos| (1..=max).contains(nanos)).ok_or_else(wrong)?;
    Ok(if is_back { -nanos } else { nanos })
}

fn parse_time(text: &str) -> Result<Timestamp, LeafError> {
    let time = text.parse::<Timestamp>().ok();
    time.filter(|time| (0..END_OF_TIME_S).contains(&time.as_second())).ok_or_else(|| {
        LeafError::not(text, "a time such as `2038-01-19T03:14:00Z`")
            .help("write a date, a time and its zone, in quotes, from 1970 to 2199")
    })
}

impl CheckEffect for ClockDraft {
    type Checked = Clock;

    fn check(&self, checker: &mut Checker) -> Clock {
        let message = "the list has no change of the clock";
        self.by.iter().for_each(|steps| checker.require_not_empty(steps, message));
        self.to.iter().for_each(|times| checker.require_not_empty(times, message));
        if self.by.is_some() == self.to.is_some() && checker.is_complete {
            checker.method_problem(
                "`clock` must have exactly one of `by` and `to`",
                "add `by: [-6 min]`, or `to: ['2038-01-19T03:14:00Z']`",
            );
        }
        let by = self.by.iter().flat_map(|steps| &steps.value).map(|step| ClockChange::By(step.0));
        let to = self.to.iter().flat_map(|times| &times.value).map(|time| ClockChange::To(time.0));
        Clock { changes: by.chain(to).collect() }
    }
}

impl Clock {
    /// The change of a planned trial.
    pub fn change(&self) -> ClockChange {
        self.changes.first().copied().unwrap_or(ClockChange::By(0))
    }
}

impl ClockChange {
    /// How far from the machine's clock the target's is afterwards, in nanoseconds. `before`: how far it was.
    /// `machine`: what the machine's clock shows, since 1970.
    pub fn shift_nanos(self, before: i64, machine: Duration) -> i64 {
        match self {
            ClockChange::By(nanos) => before.saturating_add(nanos),
            ClockChange::To(time) => {
                let shift = time.as_nanosecond() - i128::try_from(machine.as_nanos()).unwrap_or(i128::MAX);
                i64::try_from(shift).unwrap_or(i64::MIN)
            }
        }
    }
}

impl EffectSpec for Clock {
    fn describe(&self) -> String {
        let changes: Vec<String> = self.changes.iter().map(ClockChange::to_string).collect();
        format!("the wall clock {}", changes.join(", "))
    }

    fn choices(&self, _measured: Measurements<'_>) -> Vec<Clock> {
        self.changes.iter().map(|change| Clock { changes: vec![*change] }).collect()
    }

    fn answers_calls(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_sign_a_number_and_a_unit_and_is_shown_as_it_is_meant() {
        let shown = |text| parse_step(text).map(|nanos| ClockChange::By(nanos).to_string()).ok();
        for (text, expected) in [
            ("-6 min", "6 min back"),
            ("+1d", "1 d ahead"),
            ("+24 h", "1 d ahead"),
            ("-90 s", "90 s back"),
            ("+1500 ms", "1500 ms ahead"),
            ("-18250 d", "18250 d back"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        for wrong in ["6 min", "-6", "+0 s", "-18251 d", "+1 y", "+-1 d", "+ 1 d", "", "+9999999999999 d"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_time_is_within_what_a_machine_can_show() {
        for (text, is_time) in [
            ("1970-01-01T00:00:00Z", true),
            ("2038-01-19T03:14:08+01:00", true),
            ("2199-12-31T23:59:59Z", true),
            ("1969-12-31T23:59:59Z", false),
            ("2200-01-01T00:00:00Z", false),
            ("2026-05-02", false),
            ("2026-05-02T03:05", false),
        ] {
            assert_eq!(parse_time(text).is_ok(), is_time, "{text}");
        }
        let at = ClockChange::To(Timestamp::UNIX_EPOCH);
        assert_eq!(at.shift_nanos(7, Duration::from_secs(5)), -5 * NANOS_PER_SECOND);
    }
}
