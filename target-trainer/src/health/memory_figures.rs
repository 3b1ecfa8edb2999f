//! What the kernel's files tell about memory: `/proc/meminfo`, `/proc/vmstat` and `/proc/pressure/memory`, as
//! described in proc_meminfo(5), proc_vmstat(5) and the kernel's accounting/psi.rst. A text that is not exactly of this
//! form tells nothing. Reads no file.

use super::condition::{Finding, Level};

/// Swapped pages per second from which on the machine swaps heavily, and below which it does no more.
const SWAPPED_PAGES_PER_S: (u64, u64) = (2000, 200);
/// Share of the swap in use, in percent.
const SWAP_USED_PERCENT: (u64, u64) = (90, 80);
/// Share of the last ten seconds in which some process waited for memory, and in which all did, in hundredths of a
/// percent.
const SOME_WAITED: (u64, u64) = (4000, 2000);
const ALL_WAITED: (u64, u64) = (1000, 500);
const MIB: u64 = 1 << 20;

/// The swap space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SwapSpace {
    total_bytes: u64,
    used_bytes: u64,
}

/// Pages that have been swapped since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SwappedPages {
    pages_in: u64,
    pages_out: u64,
}

/// Pages that are swapped in one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SwapRate {
    pages_in: u64,
    pages_out: u64,
}

/// How long processes have waited for memory, in hundredths of a percent of the last ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryPressure {
    some: u64,
    full: u64,
}

impl SwapSpace {
    /// From the text of `/proc/meminfo`.
    pub(super) fn parse(text: &[u8]) -> Option<SwapSpace> {
        let bytes = |key: &str| {
            let kibibytes = only_value(text, key)?.trim_start().strip_suffix(" kB")?;
            number(kibibytes)?.checked_mul(1024)
        };
        let total_bytes = bytes("SwapTotal:")?;
        let used_bytes = total_bytes.checked_sub(bytes("SwapFree:")?)?;
        Some(SwapSpace { total_bytes, used_bytes })
    }

    fn figures(self) -> String {
        let SwapSpace { total_bytes, used_bytes } = self;
        format!("{} MiB of {} MiB of swap are in use", used_bytes / MIB, total_bytes / MIB)
    }

    pub(super) fn finding(self) -> Finding {
        let is_used = |percent: u64| {
            u128::from(self.used_bytes) * 100 >= u128::from(self.total_bytes) * u128::from(percent)
        };
        let is_bad = self.total_bytes > 0 && is_used(SWAP_USED_PERCENT.0);
        Finding {
            name: "swap space".into(),
            level: Level::of(is_bad, !is_used(SWAP_USED_PERCENT.1) || self.total_bytes == 0),
            bad: "the swap space is nearly full",
            good: "the swap space is no longer nearly full",
            figures: self.figures(),
        }
    }
}

impl SwappedPages {
    /// From the text of `/proc/vmstat`.
    pub(super) fn parse(text: &[u8]) -> Option<SwappedPages> {
        let pages = |key: &str| number(only_value(text, key)?);
        Some(SwappedPages { pages_in: pages("pswpin ")?, pages_out: pages("pswpout ")? })
    }

    /// What was swapped in each second since an earlier look. `None` if the numbers have become smaller.
    pub(super) fn rate_since(self, earlier: SwappedPages, elapsed_ms: u64) -> Option<SwapRate> {
        let rate = |now: u64, before: u64| {
            let pages = u128::from(now.checked_sub(before)?) * 1000 / u128::from(elapsed_ms.max(1));
            Some(u64::try_from(pages).unwrap_or(u64::MAX))
        };
        let pages_in = rate(self.pages_in, earlier.pages_in)?;
        Some(SwapRate { pages_in, pages_out: rate(self.pages_out, earlier.pages_out)? })
    }
}

impl SwapRate {
    pub(super) fn finding(self, space: Option<SwapSpace>) -> Finding {
        let pages = self.pages_in.saturating_add(self.pages_out);
        let space = space.map(|space| format!("; {}", space.figures())).unwrap_or_default();
        let SwapRate { pages_in, pages_out } = self;
        Finding {
            name: "swapping".into(),
            level: Level::of(pages >= SWAPPED_PAGES_PER_S.0, pages < SWAPPED_PAGES_PER_S.1),
            bad: "the machine swaps heavily",
            good: "the machine no longer swaps heavily",
            figures: format!("{pages_in} pages in and {pages_out} pages out per second{space}"),
        }
    }
}

impl MemoryPressure {
    /// From the text of `/proc/pressure/memory`.
    pub(super) fn parse(text: &[u8]) -> Option<MemoryPressure> {
        let share = |key: &str| hundredths(only_value(text, key)?.split(' ').next()?);
        Some(MemoryPressure { some: share("some avg10=")?, full: share("full avg10=")? })
    }

    pub(super) fn finding(self) -> Finding {
        let MemoryPressure { some, full } = self;
        let percent = |hundredths: u64| format!("{}.{:02} %", hundredths / 100, hundredths % 100);
        Finding {
            name: "memory pressure".into(),
            level: Level::of(
                some >= SOME_WAITED.0 || full >= ALL_WAITED.0,
                some < SOME_WAITED.1 && full < ALL_WAITED.1,
            ),
            bad: "memory is short",
            good: "memory is no longer short",
            figures: format!(
                "in the last ten seconds, processes waited for it {} of the time, all at once {}",
                percent(some),
                percent(full)
            ),
        }
    }
}

/// What follows a key at the beginning of a line. `None` also if two lines begin with it, or the text is not UTF-8.
fn only_value<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(text).ok()?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
    values.next().filter(|_| values.next().is_none())
}

/// A number of decimal digits only.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A share in percent with two decimals, such as `12.34`, as hundredths of a percent. At most 100 %.
fn hundredths(text: &str) -> Option<u64> {
    let (percent, decimals) = text.split_once('.')?;
    let decimals = number(decimals).filter(|_| decimals.len() == 2)?;
    number(percent)?.checked_mul(100)?.checked_add(decimals).filter(|share| *share <= 10_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRESSURE: &[u8] =
        b"some avg10=41.05 avg60=2.00 avg300=0.10 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=9\n";

    #[test]
    fn the_figures_are_those_of_the_text() {
        let space = SwapSpace::parse(b"MemTotal: 5 kB\nSwapTotal:       4194304 kB\nSwapFree:  1048576 kB\n");
        assert_eq!(space.unwrap().figures(), "3072 MiB of 4096 MiB of swap are in use");
        let [before, now] = [&b"nr 1\npswpin 10\npswpout 20\n"[..], b"pswpin 3010\npswpout 7020\npswpinx 5"]
            .map(|text| SwappedPages::parse(text).unwrap());
        let rate = now.rate_since(before, 2000).unwrap();
        assert_eq!(rate, SwapRate { pages_in: 1500, pages_out: 3500 });
        assert_eq!(
            rate.finding(space).figures,
            "1500 pages in and 3500 pages out per second; 3072 MiB of 4096 MiB of swap are in use"
        );
        assert_eq!(before.rate_since(now, 2000), None, "the numbers have become smaller");
        assert!(now.rate_since(before, 0).is_some());
        let pressure = MemoryPressure::parse(PRESSURE).unwrap();
        assert_eq!(pressure, MemoryPressure { some: 4105, full: 300 });
        assert_eq!(
            pressure.finding().figures,
            "in the last ten seconds, processes waited for it 41.05 % of the time, all at once 3.00 %"
        );
    }

    #[test]
    fn a_state_begins_at_one_bound_and_ends_at_another() {
        let swap = |used_bytes| SwapSpace { total_bytes: 1000, used_bytes }.finding().level;
        assert_eq!(
            [swap(900), swap(899), swap(800), swap(799)],
            [Level::Bad, Level::Between, Level::Between, Level::Good]
        );
        assert_eq!(
            SwapSpace { total_bytes: 0, used_bytes: 0 }.finding().level,
            Level::Good,
            "no swap at all"
        );
        let rate = |pages_out| SwapRate { pages_in: 100, pages_out }.finding(None).level;
        assert_eq!(
            [rate(1900), rate(1899), rate(100), rate(99)],
            [Level::Bad, Level::Between, Level::Between, Level::Good]
        );
        let pressure = |some, full| MemoryPressure { some, full }.finding().level;
        assert_eq!([pressure(4000, 0), pressure(0, 1000)], [Level::Bad, Level::Bad]);
        assert_eq!([pressure(3999, 0), pressure(0, 999), pressure(2000, 0)], [Level::Between; 3]);
        assert_eq!(pressure(1999, 499), Level::Good);
    }

    #[test]
    fn a_text_of_another_form_tells_nothing() {
        for odd in [
            "",
            "SwapTotal: 5 kB",
            "SwapTotal: 5 kB\nSwapFree: 6 kB",
            "SwapTotal: 5\nSwapFree: 1",
            "SwapTotal: 5 kB\nSwapTotal: 5 kB\nSwapFree: 1 kB",
            "SwapTotal: +5 kB\nSwapFree: 1 kB",
            "SwapTotal: 99999999999999999999999 kB\nSwapFree: 1 kB",
            "SwapTotal: 5 MB\nSwapFree: 1 MB",
            "SwapTotal: 18446744073709551615 kB\nSwapFree: 1 kB",
            "SwapTotal: -5 kB\nSwapFree: -6 kB",
        ] {
            assert_eq!(SwapSpace::parse(odd.as_bytes()), None, "{odd}");
        }
        for odd in
            ["pswpin 1", "pswpin 1\npswpout x", "pswpin 1\npswpout 2 3", "pswpin 1\npswpout 2\npswpin 1"]
        {
            assert_eq!(SwappedPages::parse(odd.as_bytes()), None, "{odd}");
        }
        for odd in
            ["inf", "nan", "1e3", "5", "5.1", "5.123", "-1.00", "100.01", "99999999999999999999.00", ".50"]
        {
            let text = format!("some avg10={odd} avg60=0.00\nfull avg10=0.00 avg60=0.00");
            assert_eq!(MemoryPressure::parse(text.as_bytes()), None, "{odd}");
        }
        assert_eq!(MemoryPressure::parse(b"some avg10=1.00 avg60=0.00 \xff\nfull avg10=0.00"), None);
    }

    proptest! {
        /// Whatever the files hold: no panic, and a message of digits and our own words, of bounded length.
        #[test]
        fn any_bytes_give_bounded_figures(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            lines in "((SwapTotal|SwapFree): {0,3}[0-9+-]{0,22} kB\n|(pswpin|pswpout) [0-9]{0,21}\n|(some|full) avg10=[0-9.]{0,8} \n|.){0,8}",
            elapsed_ms in any::<u64>(),
        ) {
            for text in [&bytes[..], lines.as_bytes()] {
                let space = SwapSpace::parse(text);
                let pages = SwappedPages::parse(text);
                let none = SwappedPages { pages_in: 0, pages_out: 0 };
                let rate = pages.and_then(|pages| pages.rate_since(none, elapsed_ms));
                let findings = space.map(SwapSpace::finding).into_iter()
                    .chain(rate.map(|rate| rate.finding(space)))
                    .chain(MemoryPressure::parse(text).map(MemoryPressure::finding));
                for finding in findings {
                    prop_assert!(finding.figures.len() < 200);
                    prop_assert!(finding.figures.bytes().all(|byte| matches!(byte, b' '..=b'~')));
                }
            }
        }

        #[test]
        fn a_usual_text_is_read(total in 0u64..1 << 50, free in 0u64..1 << 50, pages in any::<[u64; 2]>()) {
            let (total, free) = (total.max(free), total.min(free));
            let text = format!("SwapTotal: {total} kB\nSwapFree: {free} kB\n");
            let space = SwapSpace { total_bytes: total * 1024, used_bytes: (total - free) * 1024 };
            prop_assert_eq!(SwapSpace::parse(text.as_bytes()), Some(space));
            let [pages_in, pages_out] = pages;
            let text = format!("pswpin {pages_in}\npswpout {pages_out}\n");
            prop_assert_eq!(SwappedPages::parse(text.as_bytes()), Some(SwappedPages { pages_in, pages_out }));
        }
    }
}
