//! Puts reasons together that differ in numbers only, so that alike trials are one line for people. Knows no report.

use crate::verdict::Reason;

/// At most this many numbers of trials are listed.
const MAX_LISTED: usize = 3;

/// Reasons with the same expectation and, apart from numbers, the same finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasonGroup<'a> {
    /// The first of them.
    pub first: &'a Reason,
    /// The trials that they are about.
    pub trials: Vec<u32>,
}

impl<'a> ReasonGroup<'a> {
    /// The reasons in groups, in the order of their first ones.
    pub fn of(reasons: &'a [Reason]) -> Vec<ReasonGroup<'a>> {
        let mut groups: Vec<(String, ReasonGroup<'a>)> = Vec::new();
        for reason in reasons {
            let key = format!("{} {:?} {}", reason.expectation, reason.kind, without_numbers(&reason.found));
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.trials.extend(reason.trial),
                None => {
                    let trials = reason.trial.into_iter().collect();
                    groups.push((key, ReasonGroup { first: reason, trials }));
                }
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// Such as `11 trials (1, 2, 3, ..): `. Empty if it is about no single trial.
    pub fn trials_text(&self) -> String {
        let listed: Vec<String> = self.trials.iter().take(MAX_LISTED).map(u32::to_string).collect();
        let more = if self.trials.len() > MAX_LISTED { ", .." } else { "" };
        match self.trials.as_slice() {
            [] => String::new(),
            [only] => format!("trial {only}: "),
            trials => format!("{} trials ({}{more}): ", trials.len(), listed.join(", ")),
        }
    }
}

/// The text with one `#` for each number, also for those in words such as hashes.
fn without_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let words = text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
    for word in words {
        let (letters, end) = match word.char_indices().last() {
            Some((index, last)) if !last.is_ascii_alphanumeric() => word.split_at(index),
            _ => (word, ""),
        };
        let has_number = letters.contains(|letter: char| letter.is_ascii_digit());
        plain.push_str(if has_number { "#" } else { letters });
        plain.push_str(end);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::ViolationKind;

    fn reason(trial: Option<u32>, found: &str) -> Reason {
        let kind = ViolationKind::Harm;
        Reason { expectation: "always: same-as-baseline".into(), trial, found: found.into(), kind }
    }

    #[test]
    fn reasons_that_differ_in_numbers_are_one_group() {
        let reasons = [
            reason(Some(1), "resumed from step 3 although step 6 was acknowledged"),
            reason(Some(2), "crashed: exit code 1"),
            reason(Some(4), "resumed from step 6 although step 9 was acknowledged"),
            reason(None, "in none of 4 trials"),
            reason(Some(5), "resumed from step 6 although step 12 was acknowledged"),
            reason(Some(7), "resumed from step 6 although step 12 was acknowledged"),
        ];
        let groups = ReasonGroup::of(&reasons);
        let texts: Vec<String> = groups.iter().map(ReasonGroup::trials_text).collect();
        assert_eq!(texts, ["4 trials (1, 4, 5, ..): ", "trial 2: ", ""]);
        assert_eq!(groups[0].first, &reasons[0]);
        assert_eq!(without_numbers("[a=blake3:12ab] x9, é 3"), "[a=#:#] #, é #");
    }
}
