//! Handles the file system calls of a target during a run: counts those that triggers match, injects faults at
//! the selected ones, and sees which ones fail under a fault. Injection is exact: the target waits in the call
//! until the fault is injected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use scenarios::{CallKind, TargetFile};

use crate::faults::TargetClock;
use crate::gate::{
    CallDecision, CallEffect, CallHandler, CarriedOut, ClockShift, ConnectionLog, FileId, FilterOptions,
    GateFailure, InterceptedCall,
};
use crate::locks::LockExt;
use crate::plan::{CallCountRequest, CallInjection, CountedCall, PlannedFault};
use crate::run::armed_call_fault::{ArmedCallFault, CallProgress};
use crate::run::call_counter::CallCounter;
use crate::run::call_evidence::{CallEvidence, DecidedCall, call_evidence};
use crate::run::file_modes::modes_allow;
use crate::run::injector_exchange::InjectorExchange;
use crate::run::line_waits::LineWaits;
use crate::run::phase_tracker::PhaseTrackers;
use crate::run::printed_lines::PrintedLines;
use crate::run::save_snapshots::{SaveSnapshots, SharedSnapshots};
use crate::sandbox::KillSwitch;

/// How long a call waits for the run to inject a fault.
const INJECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What the injector reports to the run. `fault`: its place in the method.
pub(super) enum InjectorEvent {
    /// Every process of the target was killed.
    Killed { fault: u32, evidence: String },
    /// The call was altered as planned.
    Effective { fault: u32, evidence: String },
    /// A call failed as calls do under this fault.
    Refused { fault: u32, evidence: String },
    /// The run must inject the fault now. The call waits until `done` is used or dropped.
    InjectNow { fault: u32, evidence: String, done: SyncSender<()> },
}

/// The calls whose failure shows that a fault has an effect.
pub(super) struct WatchedRefusals {
    /// The fault's place in the method.
    pub(super) number: u32,
    /// The directory, as the target sees it.
    pub(super) dir: PathBuf,
    /// The errnos of this fault.
    pub(super) errnos: Vec<Errno>,
    /// Kinds of calls that the gate must stop for it.
    pub(super) extra_kinds: &'static [CallKind],
    /// A failure counts only if the modes of the files allow the call.
    pub(super) although_modes_allow: bool,
}

/// What shows the effects of faults in calls that they do not alter one by one.
pub(super) struct WatchedEffects {
    pub(super) refusals: Vec<WatchedRefusals>,
    /// The wall clock of the target.
    pub(super) clock: Arc<TargetClock>,
}

/// A fault whose injection was decided and has not been made.
struct PendingInjection {
    /// Index of the fault in `armed_faults`.
    fault_index: usize,
    decided: DecidedCall,
}

/// A kill that the target is about to get.
struct PendingKill {
    fault: u32,
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
    armed_faults: Vec<ArmedCallFault>,
    refusals: Vec<WatchedRefusals>,
    /// The target's wall clock, if a fault changes it.
    clock: Option<Arc<TargetClock>>,
    printed: PrintedLines,
    phases: PhaseTrackers,
    /// Takes copies of the files at saves.
    snapshots: Option<SharedSnapshots>,
    /// `None` in a trial, which injects faults.
    counters: Option<Vec<CallCounter>>,
    /// The phase whose ends call `on_phase_end`, while the target waits.
    measured_phase: Option<String>,
    on_phase_end: Box<dyn FnMut() + Send>,
    events: Sender<InjectorEvent>,
    kill_switch: KillSwitch,
    /// The fault that is being injected.
    pending: Option<PendingInjection>,
    /// The call that is being performed, if its failure may show the effect of a fault.
    watched_call: Option<InterceptedCall>,
    /// The kill that was decided, with its evidence.
    pending_kill: Option<PendingKill>,
    connections: ConnectionLog,
    exchange: Arc<Mutex<InjectorExchange>>,
}

/// A call injector and the receiver of its events.
pub(super) struct InjectorHandle {
    pub(super) injector: Arc<Mutex<CallInjector>>,
    events: Receiver<InjectorEvent>,
    filter_options: FilterOptions,
    exchange: Arc<Mutex<InjectorExchange>>,
}

/// Whose calls are handled, and in which directory.
pub(super) struct InjectorTarget<'a> {
    pub(super) target: &'a TargetFile,
    /// The directory that paths are relative to, as the target sees it.
    pub(super) root: PathBuf,
    pub(super) kill_switch: KillSwitch,
}

impl InjectorHandle {
    /// The injector of a trial. Returns `None` if no fault is triggered or shown by a call or, if there `may_be_gate`
    /// for that alone, waits for a line.
    pub(super) fn for_trial(
        target: InjectorTarget<'_>,
        faults: &[PlannedFault],
        watched: WatchedEffects,
        may_be_gate: bool,
    ) -> Option<InjectorHandle> {
        let WatchedEffects { refusals, clock } = watched;
        let clock = faults.iter().any(|planned| planned.fault.effect.spec().answers_calls()).then_some(clock);
        let armed_faults: Vec<ArmedCallFault> =
            faults.iter().filter_map(|planned| ArmedCallFault::arm(planned, &target.root)).collect();
        let line_waits = LineWaits::of(target.target, faults);
        // What is held must not change files either.
        let holds = faults.iter().any(|planned| planned.fault.effect.spec().holds_target());
        let outputs_only = armed_faults.is_empty() && refusals.is_empty() && clock.is_none() && !holds;
        if outputs_only && !(may_be_gate && line_waits.is_waiting()) {
            return None;
        }
        let triggers = || faults.iter().filter_map(PlannedFault::call_trigger);
        let phases = triggers().filter_map(|trigger| trigger.phase.as_deref());
        let watched = refusals.iter().flat_map(|refusals| refusals.extra_kinds.iter().copied());
        let kinds = triggers().flat_map(|trigger| trigger.kinds.iter().copied()).chain(watched).collect();
        let phases = PhaseTrackers::new(target.target, phases);
        let mut handle = InjectorHandle::new(target, phases, kinds);
        handle.filter_options.wall_clock = clock.is_some();
        handle.filter_options.outputs_only = outputs_only;
        handle.exchange().line_waits = line_waits;
        let injector = Arc::get_mut(&mut handle.injector)?.locked_mut();
        (injector.armed_faults, injector.refusals, injector.clock) = (armed_faults, refusals, clock);
        Some(handle)
    }

    /// The injector of a baseline run: counts the calls that each trigger matches. `on_phase_end` is called at
    /// each end of `measured_phase`, while the target waits.
    pub(super) fn for_counting(
        target: InjectorTarget<'_>,
        requests: &[CallCountRequest<'_>],
        measured_phase: Option<&str>,
        on_phase_end: Box<dyn FnMut() + Send>,
    ) -> InjectorHandle {
        let triggers = || requests.iter().map(|request| request.trigger);
        let phases = triggers().filter_map(|trigger| trigger.phase.as_deref()).chain(measured_phase);
        let kinds = triggers().flat_map(|trigger| trigger.kinds.iter().copied()).collect();
        let phases = PhaseTrackers::new(target.target, phases);
        let mut handle = InjectorHandle::new(target, phases, kinds);
        if let Some(injector) = Arc::get_mut(&mut handle.injector) {
            let injector = injector.locked_mut();
            injector.counters = Some(requests.iter().copied().map(CallCounter::new).collect());
            injector.measured_phase = measured_phase.map(str::to_owned);
            injector.on_phase_end = on_phase_end;
        }
        handle
    }

    /// The same, which also notes the connections that the target tries to make.
    pub(super) fn with_connections(mut self, connections: bool) -> InjectorHandle {
        self.filter_options.connections = connections;
        self
    }

    /// The same, which also takes these snapshots.
    pub(super) fn with_snapshots(self, snapshots: SharedSnapshots) -> InjectorHandle {
        self.injector.locked().snapshots = Some(snapshots);
        self
    }

    fn new(target: InjectorTarget<'_>, phases: PhaseTrackers, kinds: Vec<CallKind>) -> InjectorHandle {
        let filter_options =
            FilterOptions { extra_kinds: kinds, connections: false, ..FilterOptions::default() };
        let (sender, events) = channel();
        let exchange = InjectorExchange::new(LineWaits::of(target.target, &[]));
        let exchange = Arc::new(Mutex::new(exchange));
        let injector = CallInjector {
            root: target.root,
            armed_faults: Vec::new(),
            refusals: Vec::new(),
            clock: None,
            printed: PrintedLines::default(),
            phases,
            snapshots: None,
            counters: None,
            measured_phase: None,
            on_phase_end: Box::new(|| ()),
            events: sender,
            kill_switch: target.kill_switch,
            pending: None,
            watched_call: None,
            pending_kill: None,
            connections: ConnectionLog::default(),
            exchange: Arc::clone(&exchange),
        };
        InjectorHandle { injector: Arc::new(Mutex::new(injector)), events, filter_options, exchange }
    }

    /// Which calls the seccomp filter must stop.
    pub(super) fn filter_options(&self) -> &FilterOptions {
        &self.filter_options
    }

    /// The next event that has not been handled, if there is one now.
    pub(super) fn next_event(&self) -> Option<InjectorEvent> {
        self.events.try_recv().ok()
    }

    /// What the run and the injector tell each other. A call may wait for the run meanwhile, unlike with the
    /// functions below: they are for the time in which the target does not run.
    pub(super) fn exchange(&self) -> MutexGuard<'_, InjectorExchange> {
        self.exchange.locked()
    }

    /// Whether calls are counted or watched, or may still be altered. If not, the target runs without the gate.
    pub(super) fn is_needed(&self) -> bool {
        let mut injector = self.injector.locked();
        injector.disarm_ended_faults();
        injector.counters.is_some()
            || !injector.refusals.is_empty()
            || injector.clock.is_some()
            || injector.armed_faults.iter().any(ArmedCallFault::is_pending)
            || self.exchange().line_waits.is_waiting()
    }

    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&self, outputs: &[FileId]) {
        self.exchange().line_waits.begin_attempt();
        let mut injector = self.injector.locked();
        injector.phases.set_main_outputs(outputs);
        injector.with_snapshots(|snapshots| snapshots.set_main_outputs(outputs));
    }

    /// How far it got with a fault. `None`: the fault waits for no call.
    pub(super) fn progress(&self, fault: u32) -> Option<CallProgress> {
        let injector = self.injector.locked();
        injector.armed_faults.iter().find(|armed| armed.number == fault).map(ArmedCallFault::progress)
    }

    /// The connections that the target tried to make.
    pub(super) fn connections(&self) -> ConnectionLog {
        self.injector.locked().connections.clone()
    }

    /// As in [`BaselineCounts`](crate::plan::BaselineCounts).
    pub(super) fn counted_calls(&self) -> BTreeMap<u32, Vec<Vec<CountedCall>>> {
        let injector = self.injector.locked();
        let counters = injector.counters.iter().flatten();
        counters.map(|counter| (counter.number, counter.calls.clone())).collect()
    }
}

impl CallInjector {
    fn with_snapshots(&self, change: impl FnOnce(&mut SaveSnapshots)) {
        if let Some(snapshots) = &self.snapshots {
            change(&mut snapshots.locked());
        }
    }

    /// Follows what the current call has written to an output.
    fn on_output_written(&mut self, pipe: FileId, tid: i32) {
        for line in self.printed.on_output_written(pipe) {
            self.exchange.locked().line_waits.on_line(tid, &line.text);
            let ended = self.phases.on_line(&line);
            if self.measured_phase.as_ref().is_some_and(|measured| ended.contains(measured)) {
                (self.on_phase_end)();
            }
            self.with_snapshots(|snapshots| snapshots.on_line(&line));
        }
    }

    /// Later calls are not altered by faults that are over.
    fn disarm_ended_faults(&mut self) {
        let exchange = self.exchange.locked();
        let ended =
            self.armed_faults.iter_mut().filter(|armed| exchange.ended_faults.contains(&armed.number));
        ended.for_each(ArmedCallFault::disarm);
    }

    /// A fault has had an effect.
    fn send_effect(&self, event: InjectorEvent) {
        self.with_snapshots(SaveSnapshots::on_effect);
        self.send(event);
    }

    fn describe_call(&self, call: &InterceptedCall) -> String {
        let relative = |path: &Path| path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        let to = call.to.as_ref().map(|to| format!(" -> {}", relative(to))).unwrap_or_default();
        let bytes = call.requested_bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        format!("{}({}{to}{bytes})", call.kind.syscall_name(), relative(&call.path))
    }

    fn send(&self, event: InjectorEvent) {
        // If the run is over, the event is not needed.
        let _ = self.events.send(event);
    }

    /// Asks the run to inject the fault, and waits until it has.
    fn inject_and_wait(&self, fault: u32, evidence: String) {
        let (done, is_done) = sync_channel(1);
        self.send(InjectorEvent::InjectNow { fault, evidence, done });
        // A timeout is ignored: the fault's own evidence decides whether it became effective.
        let _ = is_done.recv_timeout(INJECTION_TIMEOUT);
    }

    /// Lets each fault count the call. The first one in the method that wants it gets it.
    fn match_call(&mut self, call: &InterceptedCall) -> Option<CallMatch> {
        let description = self.describe_call(call);
        let mut taken: Option<CallMatch> = None;
        let mut taken_by = 0;
        for (fault_index, armed) in self.armed_faults.iter_mut().enumerate() {
            let Some(rule_match) = armed.on_call(call, &self.phases) else { continue };
            if taken.is_some() {
                if !armed.is_decided {
                    armed.why = Some(format!("fault {taken_by} took the call for which it waited"));
                }
                continue;
            }
            let decided = DecidedCall {
                call: format!("{description}, call {}{}", rule_match.nth, armed.phase_text()),
                requested_bytes: call.requested_bytes,
            };
            taken_by = armed.number;
            taken = Some(CallMatch { fault_index, decision: rule_match.decision, decided });
        }
        taken
    }

    /// What a fault, if any, wants at a call. Injects a fault that is not one of calls.
    fn decision_of_faults(&mut self, call: &InterceptedCall) -> CallDecision {
        let Some(CallMatch { fault_index, decision, decided }) = self.match_call(call) else {
            return CallDecision::Continue;
        };
        let armed = &mut self.armed_faults[fault_index];
        // A persistent fault is reported at its first call.
        if std::mem::replace(&mut armed.is_decided, true) {
            return decision;
        }
        armed.why = None;
        match armed.injection {
            CallInjection::HoldUntilInjected => {
                let number = armed.number;
                self.inject_and_wait(number, format!("at {}", decided.call));
            }
            _ => self.pending = Some(PendingInjection { fault_index, decided }),
        }
        decision
    }

    /// Whether a failure of this call may show the effect of a fault.
    fn is_watched(&self, call: &InterceptedCall) -> bool {
        self.refusals.iter().any(|refusals| is_in(call, &refusals.dir))
    }

    fn report_refusals(&self, call: &InterceptedCall, errno: Errno) {
        for refusals in &self.refusals {
            let is_its_own = || !refusals.although_modes_allow || modes_allow(call);
            if refusals.errnos.contains(&errno) && is_in(call, &refusals.dir) && is_its_own() {
                let evidence = format!("{} failed with {errno:?}", self.describe_call(call));
                self.send_effect(InjectorEvent::Refused { fault: refusals.number, evidence });
            }
        }
    }
}

fn is_in(call: &InterceptedCall, dir: &Path) -> bool {
    call.path.starts_with(dir) || call.to.as_ref().is_some_and(|to| to.starts_with(dir))
}

impl CallHandler for CallInjector {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.printed.clear_written();
        if let Some(counters) = &mut self.counters {
            counters.iter_mut().for_each(|counter| counter.count(call, &self.root, &self.phases));
            return CallDecision::Continue;
        }
        self.disarm_ended_faults();
        let decision = self.decision_of_faults(call);
        self.watched_call = self.is_watched(call).then(|| call.clone());
        match decision {
            CallDecision::Continue if self.watched_call.is_some() => CallDecision::Observe,
            decision => decision,
        }
    }

    fn on_kernel_failure(&mut self, errno: Errno) {
        if let Some(call) = &self.watched_call {
            self.report_refusals(call, errno);
        }
    }

    fn on_carried_out(&mut self, done: CarriedOut) {
        if let (Some(call), CarriedOut::Performed(Err(errno))) = (self.watched_call.take(), done) {
            self.report_refusals(&call, errno);
        }
        let Some(PendingInjection { fault_index, decided }) = self.pending.take() else { return };
        let armed = &mut self.armed_faults[fault_index];
        let fault = armed.number;
        match call_evidence(&armed.injection, &decided, done) {
            CallEvidence::Effective(evidence) if armed.injection.is_kill() => {
                self.pending_kill = Some(PendingKill { fault, evidence });
            }
            CallEvidence::Effective(evidence) => {
                self.send_effect(InjectorEvent::Effective { fault, evidence });
            }
            CallEvidence::Ineffective(why) => armed.why = Some(why),
        }
    }

    fn on_failure(&mut self, failure: GateFailure) {
        self.exchange.locked().failure.get_or_insert(failure);
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        self.printed.on_payload(bytes);
    }

    fn on_effect(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::OutputWritten { pipe, tid } => self.on_output_written(pipe, tid),
            CallEffect::Connects(attempt) => self.connections.add(attempt),
            effect => self.clock.iter().for_each(|clock| clock.note(&effect)),
        }
        self.printed.clear_written();
    }

    fn holds(&mut self, tid: i32) -> bool {
        self.exchange.locked().line_waits.holds(tid)
    }

    fn may_end_delay(&mut self, due: Instant) -> bool {
        self.exchange.locked().may_end_delay(due)
    }

    fn clock_shift(&self) -> ClockShift {
        self.clock.as_ref().map(|clock| clock.shift()).unwrap_or_default()
    }

    fn kill_target(&mut self) {
        let killed = self.kill_switch.kill_all();
        let Some(PendingKill { fault, evidence }) = self.pending_kill.take() else { return };
        match killed {
            Ok(()) => {
                let evidence = format!("every process was {evidence}");
                self.send(InjectorEvent::Killed { fault, evidence });
            }
            // What was only decided is no evidence.
            Err(error) => {
                let why = format!("the kill failed: {}", crate::file_error::chain(&error));
                let armed = self.armed_faults.iter_mut().filter(|armed| armed.number == fault);
                armed.for_each(|armed| armed.why = Some(why.clone()));
            }
        }
    }

    fn observes_pipe(&self, _pipe: FileId) -> bool {
        true
    }
}
