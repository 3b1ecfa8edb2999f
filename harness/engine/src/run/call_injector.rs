//! Handles the file system calls of a target during a run: counts those that a trigger matches, and injects
//! faults at the selected ones. Injection is exact: the target waits in the call until the fault is injected.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scenarios::{CallTrigger, Replacement, TargetFile};

use crate::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CallRule, CallRules, CarriedOut, ConnectionLog, FileId,
    FilterOptions, GateFailure, InterceptedCall, Swap,
};
use crate::locks::LockExt;
use crate::plan::{CallInjection, CountedCall, InjectionPoint, PlannedFault};
use crate::run::call_evidence::{CallEvidence, DecidedCall, call_evidence};
use crate::run::phase_tracker::{PhaseEnd, PhaseTracker};
use crate::sandbox::KillSwitch;

/// How long a call waits for the run to inject a fault.
const INJECTION_TIMEOUT: Duration = Duration::from_secs(10);
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
}

/// A fault whose injection was decided and has not been made.
struct PendingInjection {
    fault: String,
    injection: CallInjection,
    decided: DecidedCall,
}

/// A kill that the target is about to get.
struct PendingKill {
    fault: String,
    evidence: String,
}

/// A call at which a fault is injected.
struct CallMatch {
    /// Index of the fault in `armed_faults`.
    fault_index: usize,
    decision: CallDecision,
    decided: DecidedCall,
}

/// The call handler of a run.
pub(super) struct CallInjector {
    root: PathBuf,
    matcher: CallMatcher,
    armed_faults: Vec<ArmedCallFault>,
    phase: PhaseTracker,
    /// Counted calls of each occurrence of the phase, or of the whole run. `None` in a trial, which injects
    /// faults.
    counted_calls: Option<Vec<Vec<CountedCall>>>,
    /// Called at each end of the phase, while the target waits.
    on_phase_end: Box<dyn FnMut() + Send>,
    events: Sender<InjectorEvent>,
    kill_switch: KillSwitch,
    /// The fault that is being injected.
    pending: Option<PendingInjection>,
    /// The kill that was decided, with its evidence.
    pending_kill: Option<PendingKill>,
    /// The first failure of the gate. The trial is worth nothing then.
    failure: Option<GateFailure>,
    connections: ConnectionLog,
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

    /// The same, which also notes the connections that the target tries to make.
    pub(super) fn with_connections(mut self, connections: bool) -> InjectorHandle {
        self.filter_options.connections = connections;
        self
    }

    fn new(
        target: &TargetFile,
        root: PathBuf,
        kill_switch: KillSwitch,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
    ) -> InjectorHandle {
        let trigger_phase = trigger.and_then(|trigger| trigger.phase.as_deref());
        let matcher = CallMatcher {
            kinds: trigger.map(|trigger| trigger.kinds.clone()).unwrap_or_default(),
            paths: trigger.and_then(|trigger| trigger.paths.clone()),
            within_phase: trigger_phase.is_some(),
        };
        let phase = PhaseTracker::new(target, trigger_phase.or(phase));
        let filter_options = FilterOptions { extra_kinds: matcher.kinds.clone(), connections: false };
        let (sender, events) = channel();
        let injector = CallInjector {
            root,
            matcher,
            armed_faults: Vec::new(),
            phase,
            counted_calls: Some(Vec::new()),
            events: sender,
            kill_switch,
            pending: None,
            pending_kill: None,
            failure: None,
            connections: ConnectionLog::default(),
            on_phase_end: Box::new(|| ()),
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
        self.injector.locked().phase.set_main_outputs(outputs);
    }

    /// The failure of the gate, if it has failed.
    pub(super) fn failure(&self) -> Option<GateFailure> {
        self.injector.locked().failure.clone()
    }

    /// Ends a persistent fault: later calls are not altered.
    pub(super) fn end_fault(&self, fault: &str) {
        let mut injector = self.injector.locked();
        for armed in injector.armed_faults.iter_mut().filter(|armed| armed.fault == fault) {
            armed.rules.disarm(0);
        }
    }

    /// The connections that the target tried to make.
    pub(super) fn connections(&self) -> ConnectionLog {
        self.injector.locked().connections.clone()
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
        let relative = call.path.strip_prefix(&self.root).ok();
        let relative_to = call.to.as_ref().and_then(|to| to.strip_prefix(&self.root).ok());
        let is_selected =
            |path: &std::path::Path| self.matcher.paths.as_ref().is_none_or(|paths| paths.is_match(path));
        let selected = relative.into_iter().chain(relative_to).any(is_selected);
        if !selected || !self.matcher.kinds.contains(&call.kind) {
            return;
        }
        let occurrence = if self.matcher.within_phase { self.phase.current_occurrence() } else { Some(1) };
        let Some(occurrence) = occurrence.map(|occurrence| occurrence as usize) else { return };
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

    fn match_call(&mut self, call: &InterceptedCall) -> Option<CallMatch> {
        let (phase, description) = (&self.phase, self.describe_call(call));
        for (fault_index, armed) in self.armed_faults.iter_mut().enumerate() {
            let is_in_reach =
                armed.injected || armed.occurrence.is_none_or(|occurrence| phase.is_inside_of(occurrence));
            let Some(rule_match) = is_in_reach.then(|| armed.rules.on_call(call)).flatten() else { continue };
            let occurrence = armed
                .occurrence
                .map(|occurrence| format!(" in occurrence {occurrence} of the phase"))
                .unwrap_or_default();
            let decided = DecidedCall {
                call: format!("{description}, call {}{occurrence}", rule_match.nth),
                requested_bytes: call.requested_bytes,
            };
            return Some(CallMatch { fault_index, decision: rule_match.decision, decided });
        }
        None
    }

    /// Kills the target if the occurrence had fewer calls than in the baseline, so that the planned call
    /// never came. The evidence reports this.
    fn kill_at_phase_end(&mut self, PhaseEnd { occurrence }: PhaseEnd) {
        let is_due = |armed: &&mut ArmedCallFault| {
            armed.occurrence == Some(occurrence) && !armed.injected && armed.injection.is_kill()
        };
        if let Some(armed) = self.armed_faults.iter_mut().find(is_due) {
            armed.injected = true;
            let evidence = format!(
                "killed at the end of occurrence {occurrence} of the phase, \
                 which had fewer calls than in the baseline"
            );
            self.pending_kill = Some(PendingKill { fault: armed.fault.clone(), evidence });
            CallHandler::kill_target(self);
        }
    }
}

impl CallHandler for CallInjector {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.phase.clear_written();
        if self.counted_calls.is_some() {
            self.count_call(call);
            return CallDecision::Continue;
        }
        let Some(CallMatch { fault_index, decision, decided }) = self.match_call(call) else {
            return CallDecision::Continue;
        };
        let armed = &mut self.armed_faults[fault_index];
        let first = !std::mem::replace(&mut armed.injected, true);
        let (fault, injection) = (armed.fault.clone(), armed.injection.clone());
        match injection {
            CallInjection::HoldUntilInjected if first => {
                self.inject_and_wait(fault, format!("at {}", decided.call))
            }
            CallInjection::HoldUntilInjected => {}
            // A persistent fault is reported at its first call.
            injection if first => self.pending = Some(PendingInjection { fault, injection, decided }),
            _ => {}
        }
        decision
    }

    fn on_carried_out(&mut self, done: CarriedOut) {
        let Some(PendingInjection { fault, injection, decided }) = self.pending.take() else { return };
        match call_evidence(&injection, &decided, done) {
            CallEvidence::Effective(evidence) if injection.is_kill() => {
                self.pending_kill = Some(PendingKill { fault, evidence });
            }
            CallEvidence::Effective(evidence) => self.send(InjectorEvent::Effective { fault, evidence }),
            // Without evidence the trial is inconclusive.
            CallEvidence::Ineffective(_) => {}
        }
    }

    fn on_failure(&mut self, failure: GateFailure) {
        self.failure.get_or_insert(failure);
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        self.phase.on_payload(bytes);
    }

    fn on_effect(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::OutputWritten { pipe } => {
                for end in self.phase.on_output_written(pipe) {
                    (self.on_phase_end)();
                    self.kill_at_phase_end(end);
                }
            }
            CallEffect::Connects(attempt) => self.connections.add(attempt),
            _ => {}
        }
        self.phase.clear_written();
    }

    fn kill_target(&mut self) {
        let killed = self.kill_switch.kill_all();
        let (fault, evidence) =
            self.pending_kill.take().map(|kill| (kill.fault, kill.evidence)).unwrap_or_default();
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
