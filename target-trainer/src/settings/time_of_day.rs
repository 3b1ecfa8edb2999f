//! A local time of day, written as `03:05` in the settings.

use std::str::FromStr;

use jiff::civil::Time;
use serde::{Deserialize, Serialize};

/// A local time of day, to the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(Time);

/// A text that is no time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time of day; use hours and minutes, such as `03:05`")]
pub struct NotTimeOfDay(String);

impl TimeOfDay {
    /// The time of day.
    pub fn time(self) -> Time {
        self.0
    }
}

impl Default for TimeOfDay {
    /// At night, when most machines have little to do, and not at a full hour, when much else begins.
    fn default() -> TimeOfDay {
        TimeOfDay(Time::constant(3, 5, 0, 0))
    }
}

impl FromStr for TimeOfDay {
    type Err = NotTimeOfDay;

    fn from_str(text: &str) -> Result<TimeOfDay, NotTimeOfDay> {
        let number = |digits: &str| -> Option<i8> {
            let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        };
        let parsed = text.split_once(':').and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
        let time = parsed.and_then(|(hour, minute)| Time::new(hour, minute, 0, 0).ok());
        time.map(TimeOfDay).ok_or_else(|| NotTimeOfDay(text.to_owned()))
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = NotTimeOfDay;

    fn try_from(text: String) -> Result<TimeOfDay, NotTimeOfDay> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        format!("{:02}:{:02}", time.0.hour(), time.0.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::TimeOfDay;

    #[test]
    fn a_time_of_day_has_hours_and_minutes_and_nothing_else() {
        for text in ["00:00", "03:05", "23:59"] {
            assert_eq!(String::from(text.parse::<TimeOfDay>().unwrap()), text);
        }
        for wrong in ["", "3:05", "24:00", "03:60", "03:05:00", "-1:00", "+1:00", "03", "a:b", "03:0５"] {
            assert!(wrong.parse::<TimeOfDay>().is_err(), "{wrong}");
        }
    }
}
