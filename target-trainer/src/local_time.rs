//! The local date and time of day, in the zone of the machine or of the variable `TZ`. Decides nothing.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The local date and time of day, as a clock on the wall shows it. A change of the machine's zone counts
/// after some minutes at the latest. A zone that can't be found is UTC.
pub fn local_now() -> DateTime {
    local_at(SystemTime::now(), &TimeZone::system())
}

/// What a clock on the wall shows in this zone. A time that no calendar has is the first or the last one.
pub fn local_at(time: SystemTime, zone: &TimeZone) -> DateTime {
    let is_past = time < SystemTime::UNIX_EPOCH;
    let outside = if is_past { Timestamp::MIN } else { Timestamp::MAX };
    zone.to_datetime(Timestamp::try_from(time).unwrap_or(outside))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_clock_has_a_date() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let at = |seconds: u64| local_at(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), &zone);
        assert_eq!(at(0).to_string(), "1970-01-01T01:00:00");
        // The hour from 2 to 3 does not exist.
        assert_eq!(at(1_774_745_999).to_string(), "2026-03-29T01:59:59");
        assert_eq!(at(1_774_746_000).to_string(), "2026-03-29T03:00:00");
        assert_eq!(at(u64::MAX / 4).year(), 9999);
        assert!(local_at(SystemTime::UNIX_EPOCH - Duration::from_secs(u64::MAX / 4), &zone).year() < 0);
    }
}
