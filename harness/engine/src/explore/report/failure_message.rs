//! The lines that explain why the states of a finding fail, and how many states have which. Text for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use scenarios::{MessageCount, Outcome};

use crate::explore::replay::{RecoveryResult, TriedControl, TriedState};
use crate::explore::states::CrashKind;

/// At most this many different lines of a finding are listed.
const MAX_MESSAGES: usize = 12;

/// What two messages of one kind may differ in.
static VARIABLE_PARTS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"[^\s'"`(]*/[^\s'"`,;:)]*|0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}\b|\d+"#).ok());

/// The line that explains the outcome of a control.
pub(super) fn control_message(control: &TriedControl) -> String {
    let message = || failure_message(&control.result, control.outcome, control.acknowledged);
    control.job_fault.clone().unwrap_or_else(message)
}

/// The line that explains the outcome of a crash state under one kind of crash.
pub(super) fn state_message(tried: &TriedState, crash: CrashKind, outcome: Outcome) -> String {
    let message = || failure_message(&tried.result, outcome, tried.state.witnesses[&crash].acknowledged);
    tried.job_faults.get(&crash).cloned().unwrap_or_else(message)
}

/// The line that explains an outcome: where the recovery resumed, if that is what is wrong, else its own line.
pub(crate) fn failure_message(
    result: &RecoveryResult,
    outcome: Outcome,
    acknowledged: Option<u64>,
) -> String {
    match (outcome, acknowledged) {
        (Outcome::LostWork | Outcome::Restarted, Some(acknowledged)) => {
            let resumed = match (result.resumed_step, result.first_step) {
                (Some(step), _) => format!("the recovery resumed from step {step}"),
                (None, Some(step)) => format!("the first step of the recovery was step {step}"),
                (None, None) => "the recovery reported no step that it resumed from".into(),
            };
            format!("{resumed}, although step {acknowledged} had been acknowledged")
        }
        _ => result.message.clone(),
    }
}

/// The message without what two messages of one kind may differ in: numbers, addresses, paths.
pub(crate) fn kind_of_message(message: &str) -> String {
    match &*VARIABLE_PARTS {
        Some(variable) => variable.replace_all(message, "#").into_owned(),
        None => message.to_owned(),
    }
}

/// The messages of one finding, by their kind.
#[derive(Default)]
pub(super) struct FailureMessages {
    by_kind: BTreeMap<String, MessageStates>,
}

struct MessageStates {
    example: String,
    digests: BTreeSet<[u8; 16]>,
}

impl FailureMessages {
    pub(super) fn add(&mut self, message: String, digest: [u8; 16]) {
        let kind = self.by_kind.entry(kind_of_message(&message));
        let states = kind.or_insert(MessageStates { example: message, digests: BTreeSet::new() });
        states.digests.insert(digest);
    }

    /// How many states have which message, the most frequent first. Empty if all have one kind.
    pub(super) fn counts(&self) -> Vec<MessageCount> {
        if self.by_kind.len() < 2 {
            return Vec::new();
        }
        let counts = self
            .by_kind
            .values()
            .map(|states| MessageCount { line: states.example.clone(), states: states.digests.len() as u64 });
        let mut counts: Vec<MessageCount> = counts.collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.states));
        if counts.len() > MAX_MESSAGES {
            let others = counts.split_off(MAX_MESSAGES - 1);
            let states = others.iter().map(|count| count.states).sum();
            counts.push(MessageCount { line: format!("({} other messages)", others.len()), states });
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_differ_in_numbers_addresses_and_paths_are_of_one_kind() {
        for (one, other) in [
            ("step 7 consumed `19`, but `3`", "step 12 consumed `4`, but `220`"),
            ("no file '/a/b/ckpt-3.pt'", "no file 'ckpt/x'"),
            ("<Tensor at 0x7f00a>", "<Tensor at 0x51>"),
            ("hash 00ff12aa99 differs", "hash deadbeef00 differs"),
        ] {
            assert_eq!(kind_of_message(one), kind_of_message(other));
        }
        assert_ne!(kind_of_message("EOFError: x 1"), kind_of_message("KeyError: x 1"));
    }

    #[test]
    fn different_messages_are_counted_by_states_the_most_frequent_first() {
        let mut messages = FailureMessages::default();
        messages.add("KeyError: 1".into(), [0; 16]);
        assert!(messages.counts().is_empty());
        (1..4).for_each(|state| messages.add(format!("EOFError: {state}"), [state; 16]));
        messages.add("EOFError: 3".into(), [3; 16]);
        let counts: Vec<_> = messages.counts().into_iter().map(|count| (count.line, count.states)).collect();
        assert_eq!(counts, [("EOFError: 1".to_owned(), 3), ("KeyError: 1".to_owned(), 1)]);
        (0..20).for_each(|kind| messages.add("x".repeat(kind + 1), [0; 16]));
        assert_eq!(messages.counts().len(), MAX_MESSAGES);
    }
}
