//! Compares what clients of the target have been answered with what the scenario expects. Gives no verdict.

use regex::Regex;
use scenarios::{Fact, ProbeKind, Probed, Scenario};

use crate::faults::ServerAnswer;

/// Longest part of an answer that is told.
const MAX_SHOWN_CHARS: usize = 200;

/// Answers that the scenario expects.
pub(super) struct AnswerProbe {
    /// Index of the expectation in the scenario.
    expectation: usize,
    text: String,
    status: Vec<u16>,
    or_closed: bool,
    containing: Option<Regex>,
}

impl AnswerProbe {
    /// One probe for each expectation of answers.
    pub(super) fn all_of(scenario: &Scenario) -> Vec<AnswerProbe> {
        let expectations = scenario.expect().iter().enumerate();
        let probe = |(index, expectation): (usize, &scenarios::Expectation)| {
            let Fact::Answers { status, or_closed, containing } = &expectation.fact else { return None };
            Some(AnswerProbe {
                expectation: index,
                text: expectation.text.clone(),
                status: status.clone(),
                or_closed: *or_closed,
                containing: containing.clone(),
            })
        };
        expectations.filter_map(probe).collect()
    }

    /// Compares an answer with the expected ones.
    pub(super) fn evaluate(&self, answer: &ServerAnswer) -> Probed {
        let has_status = match answer.status {
            Some(status) => self.status.contains(&status),
            None => self.or_closed && !answer.timed_out,
        };
        // A connection that was closed has no text.
        let contains = answer.status.is_none()
            || self.containing.as_ref().is_none_or(|pattern| pattern.is_match(&answer.text));
        let found = match has_status {
            true => {
                let body = answer.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                let shown: String = body.escape_debug().take(MAX_SHOWN_CHARS).collect();
                format!("{answer}: {shown}")
            }
            false => answer.to_string(),
        };
        Probed {
            expectation: self.expectation,
            kind: ProbeKind::Answers,
            probe: self.text.clone(),
            held: has_status && contains,
            found,
        }
    }
}
