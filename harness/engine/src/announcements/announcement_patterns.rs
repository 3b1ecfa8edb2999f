//! The patterns of announcements, applied to one line. Knows not which output a line is of.

use std::borrow::Cow;

use regex::{Captures, Regex};
use scenarios::TargetFile;

use super::announcement::{Announced, Announcement};

/// Where a terminal's control sequences begin.
const ESCAPE: char = '\u{1b}';

/// What the lines of a target announce. Each pattern may have a group `job`.
#[derive(Debug, Clone, Default)]
pub struct AnnouncementPatterns {
    /// A training step; with groups `step` and perhaps `loss`.
    pub step: Option<Regex>,
    /// An acknowledged save; with a group `step`.
    pub saved: Option<Regex>,
    /// The step that the target resumes from; with a group `step`.
    pub resumed: Option<Regex>,
    /// The step that the target goes back to; with a group `step`.
    pub rolled_back: Option<Regex>,
    /// What a step consumed; with groups `step` and `value`.
    pub consumed: Option<Regex>,
    /// A value at the end of a job: the group `value`, the only group, or all of the match.
    pub same: Option<Regex>,
}

impl AnnouncementPatterns {
    /// The patterns of a target file.
    pub fn of_target(target: &TargetFile) -> AnnouncementPatterns {
        let announces = target.announces();
        AnnouncementPatterns {
            step: Some(announces.step().clone()),
            saved: announces.saved().cloned(),
            resumed: announces.resumed().cloned(),
            rolled_back: announces.rolled_back().cloned(),
            consumed: None,
            same: target.same().cloned(),
        }
    }

    /// All patterns.
    pub fn all(&self) -> Vec<Regex> {
        let AnnouncementPatterns { step, saved, resumed, rolled_back, consumed, same } = self;
        [step, saved, resumed, rolled_back, consumed, same].into_iter().flatten().cloned().collect()
    }

    /// Whether some line names its job.
    pub fn name_jobs(&self) -> bool {
        self.all().iter().any(|pattern| pattern.capture_names().flatten().any(|group| group == "job"))
    }

    /// Whether steps are only told by the lines that tell of saves.
    fn trains_as_it_saves(&self) -> bool {
        self.step.as_ref().map(Regex::as_str) == self.saved.as_ref().map(Regex::as_str)
    }

    /// What one line announces. The colours of a terminal are no part of it.
    pub fn parse(&self, line: &str) -> Vec<Announcement> {
        let line = plain_line(line);
        let captures = |pattern: &'_ Option<Regex>| pattern.as_ref()?.captures(&line);
        let mut found = Vec::new();
        let mut add = |captures: &Captures<'_>, what: Option<Announced>| {
            let job = captures.name("job").map(|job| job.as_str().to_owned());
            found.extend(what.map(|what| Announcement { job, what }));
        };
        // A line that says that a step is saved is none that says that it is trained, unless no other line does.
        if let Some(captures) = captures(&self.saved) {
            if self.trains_as_it_saves() {
                add(&captures, step_in(&captures).map(|step| Announced::Step { step, loss: None }));
            }
            add(&captures, step_in(&captures).map(|step| Announced::Saved { step }));
        } else if let Some(captures) = captures(&self.resumed) {
            add(&captures, step_in(&captures).map(|step| Announced::Resumed { step }));
        } else if let Some(captures) = captures(&self.rolled_back) {
            add(&captures, step_in(&captures).map(|step| Announced::RolledBack { step }));
        } else if let Some(captures) = captures(&self.step) {
            let loss = captures.name("loss").and_then(|loss| loss.as_str().parse().ok());
            add(&captures, step_in(&captures).map(|step| Announced::Step { step, loss }));
        }
        if let Some(captures) = captures(&self.consumed) {
            let value = captures.name("value").map(|value| value.as_str().to_owned());
            let consumed = step_in(&captures).zip(value);
            add(&captures, consumed.map(|(step, value)| Announced::Consumed { step, value }));
        }
        if let Some(captures) = captures(&self.same) {
            let group = captures.name("value").or_else(|| captures.get(1)).or_else(|| captures.get(0));
            add(&captures, group.map(|value| Announced::Finished { value: value.as_str().to_owned() }));
        }
        found
    }
}

/// The number in the group `step`. A pattern without this group stands for step 0.
fn step_in(captures: &Captures<'_>) -> Option<u64> {
    captures.name("step").map_or(Some(0), |step| step.as_str().parse().ok())
}

/// The line without the sequences by which a terminal is told colours: `ESC [ .. letter`.
pub fn plain_line(line: &str) -> Cow<'_, str> {
    if !line.contains(ESCAPE) {
        return Cow::Borrowed(line);
    }
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once(ESCAPE) {
        plain.push_str(before);
        rest = after.strip_prefix('[').map_or(after, |sequence| {
            let end = sequence.find(|letter: char| ('@'..='~').contains(&letter));
            end.map_or("", |end| &sequence[end + 1..])
        });
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Vec<Announcement> {
        let regex = |text: &str| Regex::new(text).ok();
        let patterns = AnnouncementPatterns {
            step: regex(r"^(job (?<job>\S+) )?step (?<step>\d+)( loss (?<loss>\S+))?"),
            saved: regex(r"^(job (?<job>\S+) )?saved step (?<step>\d+)"),
            resumed: regex(r"^resumed from step (?<step>\d+)"),
            rolled_back: regex(r"^rolled back to step (?<step>\d+)"),
            consumed: regex(r"^step (?<step>\d+) ate (?<value>\S+)"),
            same: regex(r"^finished (\w+)"),
        };
        patterns.parse(line)
    }

    #[test]
    fn a_line_may_tell_of_a_step_and_of_its_save() {
        let both = Regex::new(r"^saved step (?<step>\d+)").ok();
        let patterns = AnnouncementPatterns { step: both.clone(), saved: both, ..Default::default() };
        let whats: Vec<Announced> =
            patterns.parse("saved step 3").into_iter().map(|announcement| announcement.what).collect();
        assert_eq!(whats, [Announced::Step { step: 3, loss: None }, Announced::Saved { step: 3 }]);
    }

    #[test]
    fn a_line_announces_all_that_it_says() {
        let of = |job: Option<&str>, what| Announcement { job: job.map(str::to_owned), what };
        for (line, expected) in [
            ("step 3", vec![of(None, Announced::Step { step: 3, loss: None })]),
            ("job a step 3 loss 0.5", vec![of(Some("a"), Announced::Step { step: 3, loss: Some(0.5) })]),
            ("job a saved step 3", vec![of(Some("a"), Announced::Saved { step: 3 })]),
            ("saved step 0", vec![of(None, Announced::Saved { step: 0 })]),
            ("resumed from step 7", vec![of(None, Announced::Resumed { step: 7 })]),
            ("rolled back to step 2", vec![of(None, Announced::RolledBack { step: 2 })]),
            ("finished abc", vec![of(None, Announced::Finished { value: "abc".into() })]),
            ("\u{1b}[32mstep\u{1b}[0m 4", vec![of(None, Announced::Step { step: 4, loss: None })]),
            (
                "step 5 ate b5",
                vec![
                    of(None, Announced::Step { step: 5, loss: None }),
                    of(None, Announced::Consumed { step: 5, value: "b5".into() }),
                ],
            ),
            ("steps: 3", vec![]),
            ("step 99999999999999999999999", vec![]),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
