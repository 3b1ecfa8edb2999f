//! The wall clock of a target while faults change it, and what the target did with it. Faults set it, and the call
//! handler of the run reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use crate::gate::{CallEffect, ClockShift};
use crate::locks::LockExt;

/// The wall clock of a target. Several faults may set it; the one that did so last is in force.
#[derive(Default)]
pub struct TargetClock {
    state: Mutex<ClockState>,
}

/// Which fault has set the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClockSetter(u32);

/// What the target did while the clock of a fault was in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClockUse {
    /// So many times it asked for the time.
    pub(super) told: u64,
    /// The calls with which it tried to set the clock, or that also read it in this way.
    pub(super) refused: BTreeSet<&'static str>,
}

#[derive(Default)]
struct ClockState {
    /// The one in force is the last.
    set: Vec<(ClockSetter, ClockShift)>,
    uses: BTreeMap<ClockSetter, ClockUse>,
    has_timer: bool,
    not_followed: Option<String>,
}

impl TargetClock {
    /// The number of a fault that is about to set the clock for the first time.
    pub(super) fn new_setter(&self) -> ClockSetter {
        let mut state = self.state.locked();
        let setter = ClockSetter(u32::try_from(state.uses.len()).unwrap_or(u32::MAX));
        state.uses.insert(setter, ClockUse::default());
        setter
    }

    /// Sets the clock. `shift_from`: how far from the machine's, if it was so far from it until now.
    pub(super) fn set(&self, setter: ClockSetter, shift_from: impl FnOnce(ClockShift) -> ClockShift) {
        let mut state = self.state.locked();
        let shift = shift_from(state.shift());
        state.set.retain(|(of, _)| *of != setter);
        state.set.push((setter, shift));
        state.note_change();
    }

    /// Takes back what a fault has set. Returns whether it had set anything.
    pub(super) fn revert(&self, setter: ClockSetter) -> bool {
        let mut state = self.state.locked();
        let before = state.set.len();
        state.set.retain(|(of, _)| *of != setter);
        let was_set = state.set.len() < before;
        if was_set {
            state.note_change();
        }
        was_set
    }

    /// How far the clock is from the machine's.
    pub fn shift(&self) -> ClockShift {
        self.state.locked().shift()
    }

    pub(super) fn used(&self, setter: ClockSetter) -> ClockUse {
        self.state.locked().uses.get(&setter).cloned().unwrap_or_default()
    }

    /// What went by another clock, or may have.
    pub(super) fn not_followed(&self) -> Option<String> {
        self.state.locked().not_followed.clone()
    }

    /// Notes what the target did.
    pub fn note(&self, effect: &CallEffect) {
        let mut state = self.state.locked();
        // After the faults nothing is claimed.
        let is_over = state.set.is_empty() && !state.uses.is_empty();
        match effect {
            CallEffect::ClockTimerSet => state.has_timer = true,
            CallEffect::ClockNotFollowed { what } if !is_over => {
                state.not_followed.get_or_insert_with(|| what.clone());
            }
            _ => {}
        }
        let Some(used) = state.use_in_force() else { return };
        match effect {
            CallEffect::ToldTime => used.told += 1,
            CallEffect::ClockChangeRefused { call } => {
                used.refused.insert(call);
            }
            _ => {}
        }
    }
}

impl ClockState {
    fn shift(&self) -> ClockShift {
        self.set.last().map(|(_, shift)| *shift).unwrap_or_default()
    }

    fn use_in_force(&mut self) -> Option<&mut ClockUse> {
        let (setter, _) = self.set.last()?;
        self.uses.get_mut(setter)
    }

    fn note_change(&mut self) {
        if self.has_timer {
            let what = "a timer that was set to a time of the wall clock before the clock changed";
            self.not_followed.get_or_insert_with(|| what.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(hours: i64) -> impl Fn(ClockShift) -> ClockShift {
        move |before| ClockShift { nanos: before.nanos + hours * 3_600_000_000_000 }
    }

    #[test]
    fn the_fault_that_set_the_clock_last_is_in_force_and_starts_from_the_one_before() {
        let clock = TargetClock::default();
        let (first, second) = (clock.new_setter(), clock.new_setter());
        clock.set(first, ahead(1));
        clock.note(&CallEffect::ToldTime);
        clock.set(second, ahead(2));
        clock.set(second, ahead(2));
        clock.note(&CallEffect::ToldTime);
        clock.note(&CallEffect::ToldTime);
        assert_eq!(clock.shift(), ahead(5)(ClockShift::default()));
        assert_eq!((clock.used(first).told, clock.used(second).told), (1, 2));
        assert!(clock.revert(second) && !clock.revert(second));
        assert_eq!(clock.shift(), ahead(1)(ClockShift::default()));
        assert!(clock.revert(first));
        assert_eq!(clock.shift(), ClockShift::default());
    }

    #[test]
    fn a_timer_counts_only_if_the_clock_changes_after_it_was_set() {
        let clock = TargetClock::default();
        let setter = clock.new_setter();
        clock.set(setter, ahead(1));
        clock.note(&CallEffect::ClockTimerSet);
        assert_eq!(clock.not_followed(), None);
        clock.revert(setter);
        assert!(clock.not_followed().is_some());
    }

    #[test]
    fn what_could_not_be_followed_counts_until_the_clock_is_the_machines_again() {
        let effect = || CallEffect::ClockNotFollowed { what: "a wait".into() };
        let before = TargetClock::default();
        before.note(&effect());
        assert_eq!(before.not_followed().as_deref(), Some("a wait"));
        let after = TargetClock::default();
        let setter = after.new_setter();
        after.set(setter, ahead(1));
        after.revert(setter);
        after.note(&effect());
        assert_eq!(after.not_followed(), None);
    }
}
