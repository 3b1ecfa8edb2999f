//! Speeds and times in words. Knows nothing of what is counted.

/// How fast so many states were tried: `12 states/s`, or `5.2 s a state` if each takes longer than a second.
pub fn speed_text(states: u64, seconds: f64) -> String {
    let per_second = states as f64 / seconds.max(1e-9);
    match states {
        0 => "no state yet".into(),
        _ if per_second >= 10.0 => format!("{per_second:.0} states/s"),
        _ if per_second >= 1.0 => format!("{per_second:.1} states/s"),
        _ => format!("{:.1} s a state", 1.0 / per_second),
    }
}

/// A time in words: `45 s`, `12 min` or `1 h 40 min`.
pub fn time_text(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        _ if seconds < 99.5 => format!("{seconds:.0} s"),
        0..100 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_recoveries_have_seconds_and_fast_ones_a_rate() {
        let texts = [(0, 9.0), (719, 34.4), (29, 10.0), (29, 29.0), (29, 229.8), (1, 3600.0)];
        let texts = texts.map(|(states, seconds)| speed_text(states, seconds));
        let expected = [
            "no state yet",
            "21 states/s",
            "2.9 states/s",
            "1.0 states/s",
            "7.9 s a state",
            "3600.0 s a state",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn times_have_one_or_two_units() {
        let texts = [0.2, 45.4, 99.0, 100.0, 720.0, 5990.0, 6000.0, 90_000.0].map(time_text);
        assert_eq!(
            texts,
            ["0 s", "45 s", "99 s", "2 min", "12 min", "1 h 40 min", "1 h 40 min", "25 h 0 min"]
        );
    }
}
