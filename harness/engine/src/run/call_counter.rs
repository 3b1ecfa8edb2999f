//! Counts the calls of a baseline run that match a fault's trigger. Pure.

use std::path::Path;

use scenarios::CallTrigger;

use crate::gate::InterceptedCall;
use crate::plan::{CallCountRequest, CountedCall};
use crate::run::phase_tracker::PhaseTrackers;

/// Calls that are counted in one occurrence of a phase.
const MAX_COUNTED_CALLS: usize = 100_000;

/// The calls that match one fault's trigger.
pub(super) struct CallCounter {
    /// The fault's place in the method.
    pub(super) number: u32,
    /// The calls of each occurrence of the trigger's phase, or of the whole run.
    pub(super) calls: Vec<Vec<CountedCall>>,
    trigger: CallTrigger,
}

impl CallCounter {
    /// Nothing is counted yet.
    pub(super) fn new(request: CallCountRequest<'_>) -> CallCounter {
        CallCounter { number: request.number, calls: Vec::new(), trigger: request.trigger.clone() }
    }

    /// Counts the call if it matches. `root`: the directory that paths are relative to.
    pub(super) fn count(&mut self, call: &InterceptedCall, root: &Path, phases: &PhaseTrackers) {
        let relative = call.path.strip_prefix(root).ok();
        let relative_to = call.to.as_ref().and_then(|to| to.strip_prefix(root).ok());
        let is_selected = |path: &Path| self.trigger.paths.as_ref().is_none_or(|paths| paths.is_match(path));
        let is_selected = relative.into_iter().chain(relative_to).any(is_selected);
        if !is_selected || !self.trigger.kinds.contains(&call.kind) {
            return;
        }
        let occurrence = match &self.trigger.phase {
            Some(phase) => phases.current_occurrence(phase),
            None => Some(1),
        };
        let Some(occurrence) = occurrence.map(|occurrence| occurrence as usize) else { return };
        if self.calls.len() < occurrence {
            self.calls.resize_with(occurrence, Vec::new);
        }
        if self.calls[occurrence - 1].len() < MAX_COUNTED_CALLS {
            self.calls[occurrence - 1].push(CountedCall {
                operation: call.kind,
                path: relative.unwrap_or(&call.path).display().to_string(),
                bytes: call.requested_bytes.unwrap_or(0),
            });
        }
    }
}
