//! Handles the file system calls of a target during a run: counts those that a trigger matches, and injects
//! faults at the selected ones. Injection is exact: the target waits in the call until the fault is injected.
//!
//! A phase begins and ends with a line that the target prints. Each line is read from the write call of the
//! process that prints it first, so it is in order with that process's other calls.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regex::Regex;
use scenarios::{CallTrigger, Replacement, TargetFile};

use crate::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CallRule, CallRules, FileId, FilterOptions,
    InterceptedCall, Swap,
};
use crate::locks::LockExt;
use crate::plan::{CallInjection, CountedCall, InjectionPoint, PlannedFault};
use crate::sandbox::KillSwitch;

/// How long a call waits for the run to inject a fault.
const INJECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest line that is compared with the phase patterns, in bytes.
const MAX_LINE_BYTES: usize = 4096;
/// Calls that are counted in one occurrence of a phase.
const MAX_COUNTED_CALLS: usize = 100_000;

/// What the injector reports to the run.
pub(super) enum InjectorEvent {
    /// Every process of the target was killed.
    Killed { fault: String, evidence: String },
    /// The call was altered as planned.
    Effective { fault: String, evidence: String },
    /// The run must inject the fault now. The call waits until `done` is used or dropped.
    InjectNow { fault: String, evidence: String, done: SyncSender<()> },
}

/// A fault that is injected at a call.
struct ArmedCallFault {
    fault: String,
    /// Which occurrence of the phase, 1-based. `None`: anywhere in the run.
    occurrence: Option<u64>,
    rules: CallRules,
    injection: CallInjection,
    injected: bool,
}

/// Selects the calls that are counted: those of the scenario's first call trigger.
struct CallMatcher {
    kinds: Vec<CallKind>,
    /// Paths below the root. `None`: all paths.
    paths: Option<globset::GlobMatcher>,
    /// Calls are counted only within the phase, separately for each of its occurrences.
    within_phase: bool,
    /// Patterns of the lines that begin and end the phase.
    phase_bounds: Option<(Regex, Regex)>,
}

/// Where the target is in its phase.
#[derive(Default)]
struct PhaseProgress {
    /// Occurrences begun so far.
    occurrences: u64,
    inside: bool,
}

/// The call handler of a run.
pub(super) struct CallInjector {
    root: PathBuf,
    matcher: CallMatcher,
    armed_faults: Vec<ArmedCallFault>,
    phase: PhaseProgress,
    /// Counted calls of each occurrence of the phase, or of the whole run. `None` in a trial, which injects
    /// faults.
    counted_calls: Option<Vec<Vec<CountedCall>>>,
    /// Called at each end of the phase, while the target waits.
    on_phase_end: Box<dyn FnMut() + Send>,
    events: Sender<InjectorEvent>,
    kill_switch: KillSwitch,
    /// The fault that is being injected, and its evidence.
    pending_evidence: Option<(String, String)>,
    /// Bytes of the current write to an output.
    written_bytes: Vec<u8>,
    /// For each output, the start of a line that is not complete.
    partial_lines: HashMap<FileId, Vec<u8>>,
    /// Outputs of the target's main process.
    main_outputs: Vec<FileId>,
    /// A worker process prints the lines of the phase itself. The main process then only forwards them,
    /// later.
    workers_announce: bool,
    /// Lines that another process may forward, each with the pipe in which it was printed first.
    first_printed_in: HashMap<String, FileId>,
}

/// A call injector and the receiver of its events.
pub(super) struct InjectorHandle {
    pub(super) injector: Arc<Mutex<CallInjector>>,
    events: Receiver<InjectorEvent>,
    filter_options: FilterOptions,
}

impl InjectorHandle {
    /// The injector of a trial. Returns `None` if no fault is triggered by a call.
    pub(super) fn for_trial(
        target: &TargetFile,
        root: PathBuf,
        kill_switch: KillSwitch,
        faults: &[PlannedFault],
    ) -> Option<InjectorHandle> {
        let trigger = faults.iter().find_map(PlannedFault::call_trigger)?;
        let mut handle = InjectorHandle::new(target, root.clone(), kill_switch, Some(trigger), None);
        let armed_faults: Vec<ArmedCallFault> =
            faults.iter().filter_map(|planned| armed_call_fault(planned, &root)).collect();
        let kinds = faults
            .iter()
            .filter_map(PlannedFault::call_trigger)
            .flat_map(|trigger| trigger.kinds.iter().copied());
        handle.filter_options.extra_kinds = kinds.collect();
        let injector = Arc::get_mut(&mut handle.injector)?.locked_mut();
        (injector.armed_faults, injector.counted_calls) = (armed_faults, None);
        Some(handle)
    }

    /// The injector of a baseline run: counts the calls that the trigger matches. `on_phase_end` is called at
    /// each end of the phase, while the target waits.
    pub(super) fn for_counting(
        target: &TargetFile,
        root: PathBuf,
        kill_switch: KillSwitch,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
        on_phase_end: Box<dyn FnMut() + Send>,
    ) -> InjectorHandle {
        let mut handle = InjectorHandle::new(target, root, kill_switch, trigger, phase);
        if let Some(injector) = Arc::get_mut(&mut handle.injector) {
            injector.locked_mut().on_phase_end = on_phase_end;
        }
        handle
    }

    fn new(
        target: &TargetFile,
        root: PathBuf,
        kill_switch: KillSwitch,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
    ) -> InjectorHandle {
        let trigger_phase = trigger.and_then(|trigger| trigger.phase.as_deref());
        let bounds = |phase: Option<&str>| {
            let phase = target.phases().get(phase?)?;
            Some((phase.begins().clone(), phase.ends().clone()))
        };
        let matcher = CallMatcher {
            kinds: trigger.map(|trigger| trigger.kinds.clone()).unwrap_or_default(),
            paths: trigger.and_then(|trigger| trigger.paths.clone()),
            within_phase: trigger_phase.is_some(),
            phase_bounds: bounds(trigger_phase.or(phase)),
        };
        let filter_options = FilterOptions {
            extra_kinds: matcher.kinds.clone(),
            stdio_writes: matcher.phase_bounds.is_some(),
        };
        let (sender, events) = channel();
        let injector = CallInjector {
            root,
            matcher,
            armed_faults: Vec::new(),
            phase: PhaseProgress::default(),
            counted_calls: Some(Vec::new()),
            events: sender,
            kill_switch,
            pending_evidence: None,
            written_bytes: Vec::new(),
            partial_lines: HashMap::new(),
            on_phase_end: Box::new(|| ()),
            main_outputs: Vec::new(),
            workers_announce: false,
            first_printed_in: HashMap::new(),
        };
        InjectorHandle { injector: Arc::new(Mutex::new(injector)), events, filter_options }
    }

    /// Which calls the seccomp filter must stop.
    pub(super) fn filter_options(&self) -> &FilterOptions {
        &self.filter_options
    }

    /// The next event that has not been handled, if there is one now.
    pub(super) fn next_event(&self) -> Option<InjectorEvent> {
        self.events.try_recv().ok()
    }

    /// Whether calls are counted or may still be altered. If not, the target runs without the gate.
    pub(super) fn is_needed(&self) -> bool {
        let injector = self.injector.locked();
        injector.counted_calls.is_some()
            || injector.armed_faults.iter().any(|armed| !armed.injected || armed.rules.is_pending())
    }

    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&self, outputs: Vec<FileId>) {
        let mut injector = self.injector.locked();
        (injector.main_outputs, injector.workers_announce) = (outputs, false);
    }

    /// Ends a persistent fault: later calls are not altered.
    pub(super) fn end_fault(&self, fault: &str) {
        let mut injector = self.injector.locked();
        for armed in injector.armed_faults.iter_mut().filter(|armed| armed.fault == fault) {
            armed.rules.disarm(0);
        }
    }

    /// The counted calls of each occurrence of the phase, or of the whole run.
    pub(super) fn counted_calls(&self) -> Vec<Vec<CountedCall>> {
        self.injector.locked().counted_calls.clone().unwrap_or_default()
    }
}

fn armed_call_fault(planned: &PlannedFault, root: &std::path::Path) -> Option<ArmedCallFault> {
    let (trigger, InjectionPoint::Call { occurrence, nth, injection, .. }) =
        (planned.call_trigger()?, &planned.injection_point)
    else {
        return None;
    };
    let rule = CallRule {
        kinds: trigger.kinds.clone(),
        paths: trigger.paths.clone(),
        nth: *nth,
        persistent: planned.is_persistent(),
        decision: gate_decision(injection),
    };
    let rules = CallRules::new(root.into(), vec![rule]);
    Some(ArmedCallFault {
        fault: planned.name(),
        occurrence: *occurrence,
        rules,
        injection: injection.clone(),
        injected: false,
    })
}

fn gate_decision(injection: &CallInjection) -> CallDecision {
    let errno = |errno: &scenarios::Errno| nix::errno::Errno::from_raw(errno.number);
    match injection {
        CallInjection::KillBefore => CallDecision::KillBefore,
        CallInjection::KillInside { bytes } => CallDecision::KillDuring(*bytes),
        CallInjection::KillAfter => CallDecision::KillAfter,
        CallInjection::Fail { errno: with, performed: false, .. } => CallDecision::Fail(errno(with)),
        CallInjection::Fail { errno: with, performed: true, .. } => {
            CallDecision::PerformThenFail(errno(with))
        }
        CallInjection::Short { bytes } => CallDecision::Short(u64::from(*bytes)),
        CallInjection::Delay { duration: delay } => CallDecision::Delay(*delay),
        CallInjection::Swap { by: Replacement::Nothing } => CallDecision::Swap(Swap::Nothing),
        CallInjection::Swap { by: Replacement::EmptyFile } => CallDecision::Swap(Swap::EmptyFile),
        CallInjection::Swap { by: Replacement::DanglingLink } => CallDecision::Swap(Swap::DanglingLink),
        CallInjection::HoldUntilInjected => CallDecision::Continue,
    }
}

impl CallInjector {
    fn describe_call(&self, call: &InterceptedCall) -> String {
        let relative =
            |path: &std::path::Path| path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        let to = call.to.as_ref().map(|to| format!(" -> {}", relative(to))).unwrap_or_default();
        let bytes = call.requested_bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        format!("{}({}{to}{bytes})", call.kind.syscall_name(), relative(&call.path))
    }

    /// Counts the call if the matcher selects it.
    fn count_call(&mut self, call: &InterceptedCall) {
        let in_phase = !self.matcher.within_phase || self.phase.inside;
        let relative = call.path.strip_prefix(&self.root).ok();
        let relative_to = call.to.as_ref().and_then(|to| to.strip_prefix(&self.root).ok());
        let is_selected =
            |path: &std::path::Path| self.matcher.paths.as_ref().is_none_or(|paths| paths.is_match(path));
        let selected = relative.into_iter().chain(relative_to).any(is_selected);
        if !in_phase || !selected || !self.matcher.kinds.contains(&call.kind) {
            return;
        }
        let occurrence = if self.matcher.within_phase { self.phase.occurrences.max(1) as usize } else { 1 };
        let path = relative.unwrap_or(&call.path).display().to_string();
        if let Some(counted) = &mut self.counted_calls {
            if counted.len() < occurrence {
                counted.resize_with(occurrence, Vec::new);
            }
            if counted[occurrence - 1].len() < MAX_COUNTED_CALLS {
                counted[occurrence - 1].push(CountedCall {
                    operation: call.kind,
                    path,
                    bytes: call.requested_bytes.unwrap_or(0),
                });
            }
        }
    }

    fn send(&self, event: InjectorEvent) {
        // If the run is over, the event is not needed.
        let _ = self.events.send(event);
    }

    /// Asks the run to inject the fault, and waits until it has.
    fn inject_and_wait(&self, fault: String, evidence: String) {
        let (done, is_done) = sync_channel(1);
        self.send(InjectorEvent::InjectNow { fault, evidence, done });
        // A timeout is ignored: the fault's own evidence decides whether it became effective.
        let _ = is_done.recv_timeout(INJECTION_TIMEOUT);
    }

    fn match_call(&mut self, call: &InterceptedCall) -> Option<(usize, CallDecision, String)> {
        let (phase, description) = (&self.phase, self.describe_call(call));
        for (index, armed) in self.armed_faults.iter_mut().enumerate() {
            let is_in_reach = armed.injected
                || armed.occurrence.is_none_or(|occurrence| phase.inside && phase.occurrences == occurrence);
            let Some(rule_match) = is_in_reach.then(|| armed.rules.on_call(call)).flatten() else { continue };
            let occurrence = armed
                .occurrence
                .map(|occurrence| format!(" in occurrence {occurrence} of the phase"))
                .unwrap_or_default();
            let evidence = format!("{description}, call {}{occurrence}", rule_match.nth);
            return Some((index, rule_match.decision, evidence));
        }
        None
    }

    /// Follows the phase. `pipe` is where the line is printed.
    fn on_line(&mut self, pipe: FileId, line: &str) {
        let Some((begins, ends)) = &self.matcher.phase_bounds else { return };
        let (begins, ends) = (begins.is_match(line), ends.is_match(line));
        if !begins && !ends {
            return;
        }
        let from_main = self.main_outputs.contains(&pipe);
        self.workers_announce |= !from_main;
        if from_main && self.workers_announce {
            return;
        }
        match self.first_printed_in.get(line) {
            // Another process forwards the line, as a supervisor does with its worker's output.
            Some(first) if *first != pipe => {
                self.first_printed_in.remove(line);
                return;
            }
            _ => drop(self.first_printed_in.insert(line.to_owned(), pipe)),
        }
        if begins {
            // An occurrence that never ended is not counted twice.
            self.phase.occurrences += u64::from(!self.phase.inside);
            self.phase.inside = true;
        } else {
            self.phase.inside = false;
            (self.on_phase_end)();
            self.kill_at_phase_end();
        }
    }

    /// Kills the target if the occurrence had fewer calls than in the baseline, so that the planned call
    /// never came. The evidence reports this.
    fn kill_at_phase_end(&mut self) {
        let occurrence = self.phase.occurrences;
        let is_due = |armed: &&mut ArmedCallFault| {
            armed.occurrence == Some(occurrence) && !armed.injected && armed.injection.is_kill()
        };
        if let Some(armed) = self.armed_faults.iter_mut().find(is_due) {
            armed.injected = true;
            let evidence = format!(
                "killed at the end of occurrence {occurrence} of the phase, \
                 which had fewer calls than in the baseline"
            );
            self.pending_evidence = Some((armed.fault.clone(), evidence));
            CallHandler::kill_target(self);
        }
    }
}

impl CallHandler for CallInjector {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.written_bytes.clear();
        if self.counted_calls.is_some() {
            self.count_call(call);
            return CallDecision::Continue;
        }
        let Some((index, decision, evidence)) = self.match_call(call) else { return CallDecision::Continue };
        let first = !std::mem::replace(&mut self.armed_faults[index].injected, true);
        let (fault, injection) =
            (self.armed_faults[index].fault.clone(), self.armed_faults[index].injection.clone());
        match injection {
            CallInjection::KillBefore | CallInjection::KillInside { .. } | CallInjection::KillAfter => {
                self.pending_evidence = Some((fault, format!("{} {evidence}", injection.describe())));
            }
            CallInjection::HoldUntilInjected if first => {
                self.inject_and_wait(fault, format!("at {evidence}"))
            }
            CallInjection::Swap { .. } => {
                self.pending_evidence = Some((fault, format!("{} before {evidence}", injection.describe())))
            }
            CallInjection::HoldUntilInjected => {}
            injection if first => self.send(InjectorEvent::Effective {
                fault,
                evidence: format!("{evidence}: {}", injection.describe()),
            }),
            _ => {}
        }
        decision
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        let len_bytes = MAX_LINE_BYTES.saturating_sub(self.written_bytes.len()).min(bytes.len());
        self.written_bytes.extend_from_slice(&bytes[..len_bytes]);
    }

    fn on_effect(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::OutputWritten { pipe } => {
                let mut text = self.partial_lines.remove(&pipe).unwrap_or_default();
                text.append(&mut self.written_bytes);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    self.on_line(pipe, String::from_utf8_lossy(&line).trim_end());
                }
                text.truncate(MAX_LINE_BYTES);
                self.partial_lines.insert(pipe, text);
            }
            CallEffect::Swapped { .. } => {
                if let Some((fault, evidence)) = self.pending_evidence.take() {
                    self.send(InjectorEvent::Effective { fault, evidence });
                }
            }
            _ => {}
        }
        self.written_bytes.clear();
    }

    fn kill_target(&mut self) {
        let killed = self.kill_switch.kill_all();
        let (fault, evidence) = self.pending_evidence.take().unwrap_or_default();
        let evidence = match killed {
            Ok(()) => format!("every process was {evidence}"),
            Err(error) => format!("the kill failed ({}): {evidence}", crate::file_error::chain(&error)),
        };
        self.send(InjectorEvent::Killed { fault, evidence });
    }

    fn observes_pipe(&self, _pipe: FileId) -> bool {
        true
    }
}
