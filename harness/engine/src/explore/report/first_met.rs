//! The first states that fail, each in another way, while others are still being tried. Text for people.

use std::collections::HashSet;
use std::sync::Mutex;

use scenarios::{Cause, Outcome};

use super::cause::pattern_of;
use super::failure_message::{kind_of_message, state_message};
use super::state_text::describe_state;
use crate::explore::record::Recording;
use crate::explore::replay::{TriedState, is_acceptable};
use crate::locks::LockExt;

/// Which ways to fail have been met.
pub(crate) struct FirstMet<'a> {
    recording: &'a Recording,
    known: Mutex<KnownFailures>,
}

#[derive(Default)]
struct KnownFailures {
    /// Outcomes with the kinds of message that they had, because a cause takes long to find out.
    messages: HashSet<(Outcome, String)>,
    /// States that have both in common are probably one finding.
    causes: HashSet<(Outcome, Cause)>,
    /// How many lines there were.
    lines: usize,
}

impl<'a> FirstMet<'a> {
    pub(crate) fn new(recording: &'a Recording) -> FirstMet<'a> {
        FirstMet { recording, known: Mutex::default() }
    }

    /// How many lines there were.
    pub(crate) fn line_count(&self) -> usize {
        self.known.locked().lines
    }

    /// A line for each way to fail that this state is the first to show. Which cause it is shows only when all states
    /// have been tried.
    pub(crate) fn new_failures(&self, tried: &TriedState) -> Vec<String> {
        let mut lines = Vec::new();
        for (crash, outcome) in tried.outcomes.iter().filter(|(_, outcome)| !is_acceptable(**outcome)) {
            let message = state_message(tried, *crash, *outcome);
            if !self.known.locked().messages.insert((*outcome, kind_of_message(&message))) {
                continue;
            }
            let witness = &tried.state.witnesses[crash];
            let cause = pattern_of(self.recording, &witness.candidate, *crash, *outcome).cause;
            if self.known.locked().causes.insert((*outcome, cause)) {
                let message = if message.is_empty() { message } else { format!(" ({message})") };
                let state = describe_state(self.recording, &tried.state);
                lines.push(format!("unconfirmed: {outcome}, {state}{message}"));
            }
        }
        self.known.locked().lines += lines.len();
        lines
    }
}
