//! Decides whether a maintenance is due, by local dates alone. Knows no clock, no zone and no file.
//!
//! A maintenance day begins at the set time and ends at the set time of the next date. A day that is not in
//! the list of those that are done is due. So a clock that jumps back never repeats one, one that jumps ahead
//! skips days instead of making up for them, and an hour that daylight saving leaves out or repeats is no
//! exception.

use std::collections::VecDeque;

use jiff::civil::{Date, DateTime, Time};

/// Days that are remembered. A clock that was set wrong and right again leads to days of long ago.
const MAX_DONE_DAYS: usize = 1000;

/// How a maintenance is found to be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScheduleRule {
    /// By the list of days that are done.
    DoneDays,
    /// The day is another one than that of the last maintenance of this process: the guard `daily_record` is
    /// off.
    OtherDay,
    /// The clock shows the hour and the minute: the guard `local_calendar` is off.
    SameMinute,
}

/// The days that are done, and the rule.
#[derive(Debug)]
pub(super) struct Schedule {
    at: Time,
    rule: ScheduleRule,
    /// In the order in which they were done.
    done: VecDeque<Date>,
    /// When the clock showed the minute last, for [`ScheduleRule::SameMinute`].
    last_minute: Option<DateTime>,
}

/// The maintenance day of a local time.
pub(super) fn maintenance_day(now: DateTime, at: Time) -> Date {
    // Only the first day of the calendar has none before it.
    if now.time() >= at { now.date() } else { now.date().yesterday().unwrap_or(now.date()) }
}

impl Schedule {
    /// A schedule with the days that are done.
    pub(super) fn new(at: Time, rule: ScheduleRule, done: impl IntoIterator<Item = Date>) -> Schedule {
        Schedule { at, rule, done: done.into_iter().collect(), last_minute: None }
    }

    /// The day that a maintenance is due for.
    pub(super) fn due(&mut self, now: DateTime) -> Option<Date> {
        let day = maintenance_day(now, self.at);
        let is_due = match self.rule {
            ScheduleRule::DoneDays => !self.done.contains(&day),
            ScheduleRule::OtherDay => self.done.back() != Some(&day),
            ScheduleRule::SameMinute => {
                let is_minute = (now.hour(), now.minute()) == (self.at.hour(), self.at.minute());
                let before = if is_minute { self.last_minute.replace(now) } else { self.last_minute.take() };
                is_minute && before.is_none()
            }
        };
        is_due.then_some(day)
    }

    /// Records that the maintenance of a day is done.
    pub(super) fn set_done(&mut self, day: Date) {
        if !self.done.contains(&day) || self.rule == ScheduleRule::OtherDay {
            self.done.push_back(day);
        }
        while self.done.len() > MAX_DONE_DAYS {
            self.done.pop_front();
        }
    }

    /// The days that are done, the last one last.
    pub(super) fn done(&self) -> impl Iterator<Item = Date> {
        self.done.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::{Duration, SystemTime};

    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;
    use crate::local_time::local_at;

    /// Zones with and without daylight saving, at midnight too, and half an hour of it.
    const ZONES: [&str; 7] = [
        "UTC0",
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "EST5EDT,M3.2.0,M11.1.0",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        "<-03>3<-02>,M3.5.0/-1,M10.5.0/0",
        "<+0545>-5:45",
        "NZST-12NZDT,M9.5.0,M4.1.0/3",
    ];

    /// What happens between two looks at the clock.
    #[derive(Debug, Clone)]
    enum Change {
        /// Time passes, in seconds.
        Passes(i64),
        /// Somebody sets the clock, by seconds ahead or back.
        Jumps(i64),
        /// Somebody sets another zone.
        Zone(usize),
        /// The daemon is started anew, with what it has recorded.
        Restarts,
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            6 => (1i64..7200).prop_map(Change::Passes),
            2 => (-7200i64..7200).prop_map(Change::Jumps),
            1 => (-40 * 86_400i64..40 * 86_400).prop_map(Change::Jumps),
            1 => (0..ZONES.len()).prop_map(Change::Zone),
            1 => Just(Change::Restarts),
        ]
    }

    /// How often each day was maintained, and the days that the daemon has lived through.
    fn live(
        start: u64,
        at: Time,
        rule: ScheduleRule,
        changes: &[Change],
    ) -> (BTreeMap<Date, u32>, BTreeSet<Date>) {
        let zones = ZONES.map(|zone| TimeZone::posix(zone).unwrap());
        let (mut clock, mut zone) = (i64::try_from(start).unwrap(), 0);
        let mut schedule = Schedule::new(at, rule, []);
        let (mut maintained, mut lived) = (BTreeMap::new(), BTreeSet::new());
        for change in changes {
            match change {
                Change::Passes(seconds) | Change::Jumps(seconds) => clock += seconds,
                Change::Zone(other) => zone = *other,
                Change::Restarts => schedule = Schedule::new(at, rule, schedule.done().collect::<Vec<_>>()),
            }
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(clock).unwrap());
            let now = local_at(time, &zones[zone]);
            lived.insert(maintenance_day(now, at));
            if let Some(day) = schedule.due(now) {
                *maintained.entry(day).or_default() += 1;
                schedule.set_done(day);
            }
        }
        (maintained, lived)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn each_day_that_is_lived_through_is_maintained_once_whatever_the_clock_does(
            start in 1_700_000_000u64..1_800_000_000,
            (hour, minute) in (0i8..24, 0i8..60),
            changes in proptest::collection::vec(change(), 1..200),
        ) {
            let at = Time::new(hour, minute, 0, 0).unwrap();
            let (maintained, lived) = live(start, at, ScheduleRule::DoneDays, &changes);
            prop_assert_eq!(maintained.keys().copied().collect::<BTreeSet<_>>(), lived);
            prop_assert!(maintained.values().all(|count| *count == 1), "{:?}", maintained);
        }
    }

    fn parse(text: &str) -> DateTime {
        text.parse().unwrap()
    }

    /// Which of these times of the clock a maintenance begins at.
    fn beginnings(at: &str, rule: ScheduleRule, done: &str, times: &[&str]) -> Vec<String> {
        let done: Date = done.parse().unwrap();
        let mut schedule = Schedule::new(at.parse().unwrap(), rule, [done]);
        let mut begun = Vec::new();
        for time in times {
            if let Some(day) = schedule.due(parse(time)) {
                schedule.set_done(day);
                begun.push(format!("{time} for {day}"));
            }
        }
        begun
    }

    #[test]
    fn a_jump_back_repeats_nothing_and_a_jump_ahead_makes_up_for_one_day() {
        let times = ["2026-05-02T03:04", "2026-05-02T03:05", "2026-05-02T02:59", "2026-05-02T03:05"];
        let once = ["2026-05-02T03:05 for 2026-05-02"];
        assert_eq!(beginnings("03:05", ScheduleRule::DoneDays, "2026-05-01", &times), once);
        assert_ne!(beginnings("03:05", ScheduleRule::OtherDay, "2026-05-01", &times), once);
        let times = ["2026-05-02T03:00", "2026-05-09T12:00", "2026-05-02T12:00", "2026-05-02T13:00"];
        assert_eq!(
            beginnings("03:05", ScheduleRule::DoneDays, "2026-05-01", &times),
            ["2026-05-09T12:00 for 2026-05-09", "2026-05-02T12:00 for 2026-05-02"]
        );
        // The set time is never shown, or twice.
        let times = ["2026-03-29T01:59", "2026-03-29T03:00"];
        let once = ["2026-03-29T03:00 for 2026-03-29"];
        assert_eq!(beginnings("02:30", ScheduleRule::DoneDays, "2026-03-28", &times), once);
        assert!(beginnings("02:30", ScheduleRule::SameMinute, "2026-03-28", &times).is_empty());
        let times = ["2026-10-25T02:30", "2026-10-25T02:59", "2026-10-25T02:00", "2026-10-25T02:30"];
        assert_eq!(beginnings("02:30", ScheduleRule::DoneDays, "2026-10-24", &times).len(), 1);
        assert_eq!(beginnings("02:30", ScheduleRule::SameMinute, "2026-10-24", &times).len(), 2);
    }

    #[test]
    fn a_clock_that_was_far_ahead_does_not_stop_the_maintenance_of_the_days_that_follow() {
        let times = ["2038-01-19T12:00", "2026-05-02T12:00", "2026-05-03T12:00", "1970-01-01T00:00"];
        assert_eq!(beginnings("03:05", ScheduleRule::DoneDays, "2026-05-01", &times).len(), 4);
    }

    #[test]
    fn the_list_of_days_is_bounded() {
        let mut schedule = Schedule::new(Time::midnight(), ScheduleRule::DoneDays, []);
        let mut day = Date::new(2026, 1, 1).unwrap();
        for _ in 0..2 * MAX_DONE_DAYS {
            schedule.set_done(day);
            day = day.tomorrow().unwrap();
        }
        assert_eq!(schedule.done().count(), MAX_DONE_DAYS);
        assert_eq!(schedule.done().last(), day.yesterday().ok());
    }
}
