//! The crash points of a recording: after each change of a file, each sync and each line that acknowledges a
//! step. Pure.

use std::collections::BTreeSet;

use crate::explore::record::{Op, OpEffect, Recording};

/// In a run of more consecutive writes to one file than this, only some writes are crash points.
const MAX_WRITE_RUN: usize = 8;

/// The crash points of a recording, as numbers of operations that have happened.
pub(super) struct CrashPoints {
    /// Sorted.
    pub(super) op_counts: Vec<usize>,
    /// How many crash points inside long runs of writes are none of them.
    pub(super) left_out: u64,
}

impl CrashPoints {
    /// Those that are in the scope. `None`: all are.
    ///
    /// A line of output that acknowledges nothing changes neither the files nor what a recovery has to reach, so
    /// that the crash points before and after it are one.
    pub(super) fn of(recording: &Recording, scope: Option<&BTreeSet<usize>>) -> CrashPoints {
        let is_in_scope = |op_count: &usize| scope.is_none_or(|points| points.contains(op_count));
        let mut points = CrashPoints { op_counts: Vec::new(), left_out: 0 };
        // Whether a crash point that equals the next one is taken already.
        let mut has_equal = is_in_scope(&0);
        points.op_counts.extend(has_equal.then_some(0));
        let mut start = 0;
        while start < recording.ops.len() {
            let run = run_of_writes(recording, start);
            let is_skipped = |nth: usize| run > MAX_WRITE_RUN && nth > 2 && nth + 2 < run && nth != run / 2;
            for nth in (1..=run).filter(|nth| is_in_scope(&(start + nth))) {
                let op = &recording.ops[start + nth - 1];
                if is_skipped(nth) {
                    points.left_out += 1;
                } else if !(has_equal && changes_nothing(op)) {
                    points.op_counts.push(start + nth);
                }
            }
            start += run;
            let in_scope = is_in_scope(&start);
            has_equal = in_scope || (has_equal && changes_nothing(&recording.ops[start - 1]));
        }
        points
    }
}

fn changes_nothing(op: &Op) -> bool {
    matches!(op.effect, OpEffect::Output { saved_step: None, .. })
}

/// How many consecutive operations from `start` on write to the same file; at least 1.
fn run_of_writes(recording: &Recording, start: usize) -> usize {
    let node = |op: usize| recording.ops.get(op).and_then(Op::data_node);
    match node(start) {
        None => 1,
        Some(first) => (start..).take_while(|op| node(*op) == Some(first)).count(),
    }
}
