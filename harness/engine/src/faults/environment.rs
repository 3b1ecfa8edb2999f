//! What the target is started with, and whether its output is read. Knows no trigger.

use std::sync::Arc;

use scenarios::{EffectSpec, Environment};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::{LaunchSpec, OutputPause, StartChanges, StartConditions, UnreadBytes};

/// A pipe counts as full if less than a long line fits.
const LONG_LINE_BYTES: u64 = 256;
/// The number of the standard input.
const STDIN: i32 = 0;
/// The number of the standard error.
const STDERR: i32 = 2;

/// A changed environment.
pub(super) struct ChangedEnvironment {
    planned: Environment,
    is_injected: bool,
    /// The variables that are so without the fault, too.
    unchanged: Vec<String>,
    /// The pause in which the output is not read, while it lasts.
    pause: Option<Arc<OutputPause>>,
}

impl ChangedEnvironment {
    pub(super) fn new(planned: &Environment) -> ChangedEnvironment {
        ChangedEnvironment {
            planned: planned.clone(),
            is_injected: false,
            unchanged: Vec::new(),
            pause: None,
        }
    }

    fn start_changes(&self) -> StartChanges {
        let Environment { set, unset, umasks, stdin_closed, stderr_closed, stderr_full, .. } = &self.planned;
        let closed = [(*stdin_closed, STDIN), (*stderr_closed, STDERR)];
        StartChanges {
            set: set.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            unset: unset.iter().map(Into::into).collect(),
            full_stderr: *stderr_full,
            conditions: StartConditions {
                umask: umasks.first().copied(),
                closed_streams: closed.iter().filter(|(closed, _)| *closed).map(|(_, fd)| *fd).collect(),
            },
        }
    }
}

/// The planned variables that a program has, or lacks, without the fault.
fn unchanged_parts(planned: &Environment, usual: &LaunchSpec) -> Vec<String> {
    let value_of = |name: &str| usual.env.iter().find(|(found, _)| found == name).map(|(_, value)| value);
    let set = planned
        .set
        .iter()
        .filter(|(name, value)| value_of(name).is_some_and(|found| found == value.as_str()));
    let unset = planned.unset.iter().filter(|name| value_of(name).is_none());
    let set = set.map(|(name, value)| format!("{name}={value}"));
    let unset = unset.map(|name| format!("no {name}"));
    set.chain(unset).collect()
}

impl InjectableFault for ChangedEnvironment {
    fn mechanism(&self) -> String {
        match self.planned.changes_start() {
            true => format!("the target is started with: {}", self.planned.describe()),
            false => "the pipe of standard output is not read".into(),
        }
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.is_injected = true;
        if self.planned.changes_start() {
            self.unchanged = unchanged_parts(&self.planned, &context.trainer.resume());
            context.sandbox.change_starts(self.start_changes());
        }
        if self.planned.stdout_unread {
            let pause = context.sandbox.output_pause();
            pause.begin(context.main_pid.is_some());
            self.pause = Some(Arc::clone(pause));
        }
        Ok(())
    }

    fn effective_evidence(&mut self, context: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        if !self.unchanged.is_empty() {
            return None;
        }
        if self.planned.stdout_unread {
            let UnreadBytes { waiting, pipe_size } = self.pause.as_ref()?.unread()?;
            let is_full = waiting + LONG_LINE_BYTES > pipe_size;
            return is_full.then(|| {
                format!("{waiting} bytes wait in the pipe of standard output, which holds {pipe_size}")
            });
        }
        let pid = context.main_pid?;
        Some(format!("process {pid} was started with: {}", self.planned.describe()))
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if let Some(pause) = self.pause.take() {
            pause.end();
        }
        context.sandbox.change_starts(StartChanges::default());
        Ok(self.is_injected.then(|| "later starts have the usual environment".into()))
    }

    fn missing_evidence(&self) -> String {
        if !self.unchanged.is_empty() {
            return format!("the target has this without the fault, too: {}", self.unchanged.join(", "));
        }
        match self.planned.stdout_unread {
            true => "the pipe of standard output did not become full".into(),
            false => "the target was not started again".into(),
        }
    }
}

impl Drop for ChangedEnvironment {
    fn drop(&mut self) {
        if let Some(pause) = self.pause.take() {
            pause.end();
        }
    }
}
