//! How much of something that is limited is in use, or is left: open files, processes, the bytes and inodes of a file
//! system. Reads no file.

use super::condition::{Finding, Level};

/// Share of a limit from which on it is nearly reached, and below which it is not any more, in percent.
const NEARLY_REACHED_PERCENT: (u64, u64) = (90, 80);
/// No more than this share of a file system is asked for, in percent: a small one would be below its mark when it is
/// empty.
const MAX_MARK_PERCENT: u64 = 5;

/// Something of which a process or a group of processes may use so many.
#[derive(Debug, Clone, Copy)]
pub(super) struct LimitedUse {
    pub(super) used: u64,
    pub(super) max: u64,
}

impl LimitedUse {
    /// `what`: such as `open files of the daemon`.
    pub(super) fn finding(self, what: &str) -> Finding {
        let LimitedUse { used, max } = self;
        let is_used = |percent: u64| u128::from(used) * 100 >= u128::from(max) * u128::from(percent);
        Finding {
            name: what.into(),
            level: Level::of(is_used(NEARLY_REACHED_PERCENT.0), !is_used(NEARLY_REACHED_PERCENT.1)),
            bad: "a limit is nearly reached",
            good: "a limit is no longer nearly reached",
            figures: format!("{used} of {max} {what}"),
        }
    }
}

/// What is left of a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remainder {
    pub(super) free: u64,
    pub(super) total: u64,
    /// What should be free, according to the settings.
    pub(super) mark: u64,
}

impl Remainder {
    /// `what`: such as `bytes`. `place`: where, safe to print.
    pub(super) fn finding(self, what: &str, place: &str) -> Finding {
        let Remainder { free, total, mark } = self;
        let share = u128::from(total) * u128::from(MAX_MARK_PERCENT) / 100;
        let mark = mark.min(u64::try_from(share).unwrap_or(u64::MAX));
        Finding {
            name: format!("{what} {place}"),
            level: Level::of(free < mark, free >= mark.saturating_add(mark / 4)),
            bad: "a file system is nearly full",
            good: "a file system has room again",
            figures: format!("{free} of {total} {what} are free at `{place}`, the mark is {mark}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_nearly_reached_at_nine_tenths() {
        let level = |used| LimitedUse { used, max: 100 }.finding("open files").level;
        assert_eq!(
            [level(90), level(89), level(80), level(79)],
            [Level::Bad, Level::Between, Level::Between, Level::Good]
        );
        assert_eq!(LimitedUse { used: u64::MAX, max: u64::MAX }.finding("open files").level, Level::Bad);
        assert_eq!(LimitedUse { used: 9, max: 10 }.finding("open files").figures, "9 of 10 open files");
    }

    #[test]
    fn a_file_system_is_nearly_full_below_its_mark() {
        let level = |free, mark| Remainder { free, total: 10_000, mark }.finding("inodes", "root").level;
        assert_eq!(
            [level(99, 100), level(100, 100), level(124, 100), level(125, 100)],
            [Level::Bad, Level::Between, Level::Between, Level::Good]
        );
        // No more than 5 % is asked for.
        assert_eq!([level(499, u64::MAX), level(625, u64::MAX)], [Level::Bad, Level::Good]);
        assert_eq!(level(0, 0), Level::Good, "a mark of 0 switches it off");
        let figures = Remainder { free: 3, total: 1000, mark: 10 }.finding("inodes", "root").figures;
        assert_eq!(figures, "3 of 1000 inodes are free at `root`, the mark is 10");
    }
}
