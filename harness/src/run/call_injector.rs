//! Stands at the gate of a run: counts the calls that a scenario's triggers speak of, and strikes at the one aimed at.
//!
//! Exact: the target waits in the call until the fault has been made. Phases begin and end with the target's words,
//! which are heard where they are first said, in order with the calls of whoever says them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regex::Regex;
use scenarios::{CallTrigger, FileCallKind, Replacement, TargetFile};

use crate::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CallRule, CallRules, FileId, FilterOptions,
    InterceptedCall, Swap,
};
use crate::plan::{CallInjection, CountedCall, InjectionPoint, PlannedFault};
use crate::sandbox::KillSwitch;

/// How long a call waits for the harness to do something.
const INJECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a line that are looked at.
const MAX_LINE_BYTES: usize = 4096;
/// Calls that are remembered of one turn of a phase.
const MAX_COUNTED_CALLS: usize = 100_000;

/// What the sentry tells the run.
pub(super) enum InjectorEvent {
    /// Everything is dead.
    Killed { fault: String, evidence: String },
    /// The call got what was meant for it.
    Effective { fault: String, evidence: String },
    /// The fault is to strike now; the call waits until `done` is used or dropped.
    InjectNow { fault: String, evidence: String, done: SyncSender<()> },
}

/// A fault that strikes at a call.
struct ArmedCallFault {
    fault: String,
    /// Which turn of the phase, 1-based; none: the whole run.
    occurrence: Option<u64>,
    rules: CallRules,
    injection: CallInjection,
    injected: bool,
}

/// The calls that are counted: those of the first trigger that speaks of calls.
struct CallMatcher {
    kinds: Vec<CallKind>,
    paths: Option<globset::GlobMatcher>,
    /// Counted turn by turn of the phase, and only within it.
    within_phase: bool,
    phase_bounds: Option<(Regex, Regex)>,
}

/// Where the target is in its phase.
#[derive(Default)]
struct PhaseProgress {
    occurrences: u64,
    inside: bool,
}

/// The overseer of a run.
pub(super) struct CallInjector {
    root: PathBuf,
    matcher: CallMatcher,
    armed_faults: Vec<ArmedCallFault>,
    phase: PhaseProgress,
    /// Of each turn of the phase, or of the whole run; only where nothing is struck.
    counted_calls: Option<Vec<Vec<CountedCall>>>,
    on_phase_end: Box<dyn FnMut() + Send>,
    events: Sender<InjectorEvent>,
    kill_switch: KillSwitch,
    /// Evidence of the strike that is under way.
    pending_evidence: Option<(String, String)>,
    /// Bytes of the call that is being overheard, and lines that have no end yet.
    written_bytes: Vec<u8>,
    partial_lines: HashMap<FileId, Vec<u8>>,
    /// The main process's own outputs, and whether somebody else of the target has words of the phase: a worker, whose
    /// supervisor tells of them only later.
    main_outputs: Vec<FileId>,
    workers_announce: bool,
    /// Lines that somebody may pass on, and in which pipe they were said first.
    first_printed_in: HashMap<String, FileId>,
}

/// A sentry, and where it reports.
pub(super) struct InjectorHandle {
    pub(super) injector: Arc<Mutex<CallInjector>>,
    pub(super) events: Receiver<InjectorEvent>,
    interest: FilterOptions,
}

impl InjectorHandle {
    /// For a trial. None: none of its faults strikes at a call.
    pub(super) fn for_trial(
        target: &TargetFile,
        base: PathBuf,
        striker: KillSwitch,
        faults: &[PlannedFault],
    ) -> Option<InjectorHandle> {
        let trigger = faults.iter().find_map(PlannedFault::call_trigger)?;
        let mut room = InjectorHandle::new(target, base.clone(), striker, Some(trigger), None);
        let posts: Vec<ArmedCallFault> =
            faults.iter().filter_map(|planned| armed_call_fault(planned, &base)).collect();
        let kinds = faults
            .iter()
            .filter_map(PlannedFault::call_trigger)
            .flat_map(|trigger| call_kinds(&trigger.kinds));
        room.interest.extra_kinds = kinds.collect();
        let sentry = Arc::get_mut(&mut room.injector)?.get_mut().unwrap_or_else(PoisonError::into_inner);
        (sentry.armed_faults, sentry.counted_calls) = (posts, None);
        Some(room)
    }

    /// For a steady state: counts what the trigger speaks of. `at_end`: done at each end of the phase, while the target
    /// waits.
    pub(super) fn for_counting(
        target: &TargetFile,
        base: PathBuf,
        striker: KillSwitch,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
        at_end: Box<dyn FnMut() + Send>,
    ) -> InjectorHandle {
        let mut room = InjectorHandle::new(target, base, striker, trigger, phase);
        if let Some(sentry) = Arc::get_mut(&mut room.injector) {
            sentry.get_mut().unwrap_or_else(PoisonError::into_inner).on_phase_end = at_end;
        }
        room
    }

    fn new(
        target: &TargetFile,
        base: PathBuf,
        striker: KillSwitch,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
    ) -> InjectorHandle {
        let during = trigger.and_then(|trigger| trigger.phase.as_deref());
        let bounds = |phase: Option<&str>| {
            let phase = target.phases().get(phase?)?;
            Some((phase.begins().clone(), phase.ends().clone()))
        };
        let watch = CallMatcher {
            kinds: trigger.map(|trigger| call_kinds(&trigger.kinds)).unwrap_or_default(),
            paths: trigger.and_then(|trigger| trigger.paths.clone()),
            within_phase: during.is_some(),
            phase_bounds: bounds(during.or(phase)),
        };
        let interest =
            FilterOptions { extra_kinds: watch.kinds.clone(), stdio_writes: watch.phase_bounds.is_some() };
        let (sender, events) = channel();
        let sentry = CallInjector {
            root: base,
            matcher: watch,
            armed_faults: Vec::new(),
            phase: PhaseProgress::default(),
            counted_calls: Some(Vec::new()),
            events: sender,
            kill_switch: striker,
            pending_evidence: None,
            written_bytes: Vec::new(),
            partial_lines: HashMap::new(),
            on_phase_end: Box::new(|| ()),
            main_outputs: Vec::new(),
            workers_announce: false,
            first_printed_in: HashMap::new(),
        };
        InjectorHandle { injector: Arc::new(Mutex::new(sentry)), events, interest }
    }

    pub(super) fn interest(&self) -> &FilterOptions {
        &self.interest
    }

    /// Whether something may still happen at a call. Without it the target runs free.
    pub(super) fn is_needed(&self) -> bool {
        let sentry = self.injector.lock().unwrap_or_else(PoisonError::into_inner);
        sentry.counted_calls.is_some()
            || sentry.armed_faults.iter().any(|post| !post.injected || post.rules.is_pending())
    }

    /// The outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&self, outputs: Vec<FileId>) {
        let mut sentry = self.injector.lock().unwrap_or_else(PoisonError::into_inner);
        (sentry.main_outputs, sentry.workers_announce) = (outputs, false);
    }

    /// A fault that goes on is over.
    pub(super) fn end_fault(&self, fault: &str) {
        let mut sentry = self.injector.lock().unwrap_or_else(PoisonError::into_inner);
        for post in sentry.armed_faults.iter_mut().filter(|post| post.fault == fault) {
            post.rules.disarm(0);
        }
    }

    /// What was counted.
    pub(super) fn counted_calls(&self) -> Vec<Vec<CountedCall>> {
        self.injector.lock().unwrap_or_else(PoisonError::into_inner).counted_calls.clone().unwrap_or_default()
    }
}

fn armed_call_fault(planned: &PlannedFault, base: &std::path::Path) -> Option<ArmedCallFault> {
    let (trigger, InjectionPoint::Call { occurrence: turn, nth, injection: way, .. }) =
        (planned.call_trigger()?, &planned.injection_point)
    else {
        return None;
    };
    let rule = CallRule {
        kinds: call_kinds(&trigger.kinds),
        paths: trigger.paths.clone(),
        nth: *nth,
        persistent: planned.is_persistent(),
        decision: gate_decision(way),
    };
    let rules = CallRules::new(base.into(), vec![rule]);
    Some(ArmedCallFault {
        fault: planned.name(),
        occurrence: *turn,
        rules,
        injection: way.clone(),
        injected: false,
    })
}

fn gate_decision(way: &CallInjection) -> CallDecision {
    let errno = |errno: &scenarios::Errno| nix::errno::Errno::from_raw(errno.number);
    match way {
        CallInjection::KillBefore => CallDecision::KillBefore,
        CallInjection::KillInside { bytes } => CallDecision::KillDuring(*bytes),
        CallInjection::KillAfter => CallDecision::KillAfter,
        CallInjection::Fail { errno: with, performed: false, .. } => CallDecision::Fail(errno(with)),
        CallInjection::Fail { errno: with, performed: true, .. } => {
            CallDecision::PerformThenFail(errno(with))
        }
        CallInjection::Short { bytes } => CallDecision::Short(u64::from(*bytes)),
        CallInjection::Delay { duration: time } => CallDecision::Delay(*time),
        CallInjection::Swap { by: Replacement::Nothing } => CallDecision::Swap(Swap::Nothing),
        CallInjection::Swap { by: Replacement::EmptyFile } => CallDecision::Swap(Swap::EmptyFile),
        CallInjection::Swap { by: Replacement::DanglingLink } => CallDecision::Swap(Swap::DanglingLink),
        CallInjection::HoldUntilInjected => CallDecision::Continue,
    }
}

fn call_kinds(operations: &[FileCallKind]) -> Vec<CallKind> {
    operations
        .iter()
        .map(|operation| match operation {
            FileCallKind::Open => CallKind::Open,
            FileCallKind::OpenToRead => CallKind::OpenRead,
            FileCallKind::Read => CallKind::Read,
            FileCallKind::Write => CallKind::Write,
            FileCallKind::Truncate => CallKind::Truncate,
            FileCallKind::Allocate => CallKind::Allocate,
            FileCallKind::Rename => CallKind::Rename,
            FileCallKind::Link => CallKind::Link,
            FileCallKind::Symlink => CallKind::Symlink,
            FileCallKind::Unlink => CallKind::Unlink,
            FileCallKind::Mkdir => CallKind::Mkdir,
            FileCallKind::Rmdir => CallKind::Rmdir,
            FileCallKind::Chmod => CallKind::Chmod,
            FileCallKind::Fsync => CallKind::Fsync,
            FileCallKind::Fdatasync => CallKind::Fdatasync,
            FileCallKind::Close => CallKind::Close,
            FileCallKind::Stat => CallKind::Stat,
            FileCallKind::Access => CallKind::Access,
        })
        .collect()
}

fn operation_of(kind: CallKind) -> Option<FileCallKind> {
    FileCallKind::ALL.into_iter().find(|one| call_kinds(&[*one]) == [kind])
}

impl CallInjector {
    fn describe_call(&self, call: &InterceptedCall) -> String {
        let below =
            |path: &std::path::Path| path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        let to = call.to.as_ref().map(|to| format!(" -> {}", below(to))).unwrap_or_default();
        let bytes = call.requested_bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        format!("{}({}{to}{bytes})", call.kind.name(), below(&call.path))
    }

    /// Remembers the call, where calls are only counted.
    fn count_call(&mut self, call: &InterceptedCall) {
        let in_phase = !self.matcher.within_phase || self.phase.inside;
        let below = call.path.strip_prefix(&self.root).ok();
        let to_below = call.to.as_ref().and_then(|to| to.strip_prefix(&self.root).ok());
        let is_meant =
            |path: &std::path::Path| self.matcher.paths.as_ref().is_none_or(|on| on.is_match(path));
        let meant = below.into_iter().chain(to_below).any(is_meant);
        if !in_phase || !meant || !self.matcher.kinds.contains(&call.kind) {
            return;
        }
        let turn = if self.matcher.within_phase { self.phase.occurrences.max(1) as usize } else { 1 };
        let Some(operation) = operation_of(call.kind) else { return };
        let path = below.unwrap_or(&call.path).display().to_string();
        if let Some(seen) = &mut self.counted_calls {
            if seen.len() < turn {
                seen.resize_with(turn, Vec::new);
            }
            if seen[turn - 1].len() < MAX_COUNTED_CALLS {
                seen[turn - 1].push(CountedCall {
                    operation,
                    path,
                    bytes: call.requested_bytes.unwrap_or(0),
                });
            }
        }
    }

    fn send(&self, hit: InjectorEvent) {
        // A run that is over listens no more.
        let _ = self.events.send(hit);
    }

    /// Waits until the run has struck.
    fn inject_and_wait(&self, fault: String, evidence: String) {
        let (done, is_done) = sync_channel(1);
        self.send(InjectorEvent::InjectNow { fault, evidence, done });
        // Late or never: the evidence that the fault gives by itself decides whether it landed.
        let _ = is_done.recv_timeout(INJECTION_TIMEOUT);
    }

    fn match_call(&mut self, call: &InterceptedCall) -> Option<(usize, CallDecision, String)> {
        let (turns, shown) = (&self.phase, self.describe_call(call));
        for (number, post) in self.armed_faults.iter_mut().enumerate() {
            let here =
                post.injected || post.occurrence.is_none_or(|turn| turns.inside && turns.occurrences == turn);
            let Some(hit) = here.then(|| post.rules.on_call(call)).flatten() else { continue };
            let turn = post.occurrence.map(|turn| format!(" of turn {turn}")).unwrap_or_default();
            let evidence = format!("{shown}, call {}{turn}", hit.nth);
            return Some((number, hit.decision, evidence));
        }
        None
    }

    /// A line, where it is first said.
    fn on_line(&mut self, pipe: FileId, line: &str) {
        let Some((begins, ends)) = &self.matcher.phase_bounds else { return };
        let (begins, ends) = (begins.is_match(line), ends.is_match(line));
        if !begins && !ends {
            return;
        }
        let own = self.main_outputs.contains(&pipe);
        self.workers_announce |= !own;
        if own && self.workers_announce {
            return;
        }
        match self.first_printed_in.get(line) {
            // Passed on by somebody else, as a supervisor does with its worker's words.
            Some(first) if *first != pipe => {
                self.first_printed_in.remove(line);
                return;
            }
            _ => drop(self.first_printed_in.insert(line.to_owned(), pipe)),
        }
        if begins {
            // A turn that was begun and never ended is begun again.
            self.phase.occurrences += u64::from(!self.phase.inside);
            self.phase.inside = true;
        } else {
            self.phase.inside = false;
            (self.on_phase_end)();
            self.kill_at_phase_end();
        }
    }

    /// A turn that had fewer calls than the undisturbed one: the kill comes now, and the evidence says so.
    fn kill_at_phase_end(&mut self) {
        let turn = self.phase.occurrences;
        let is_kill = |way: &CallInjection| {
            matches!(
                way,
                CallInjection::KillBefore | CallInjection::KillInside { .. } | CallInjection::KillAfter
            )
        };
        let due = |post: &&mut ArmedCallFault| {
            post.occurrence == Some(turn) && !post.injected && is_kill(&post.injection)
        };
        if let Some(post) = self.armed_faults.iter_mut().find(due) {
            post.injected = true;
            let evidence = format!("killed at the end of turn {turn}, which had fewer calls this time");
            self.pending_evidence = Some((post.fault.clone(), evidence));
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
        let Some((number, decision, evidence)) = self.match_call(call) else { return CallDecision::Continue };
        let first = !std::mem::replace(&mut self.armed_faults[number].injected, true);
        let (fault, way) =
            (self.armed_faults[number].fault.clone(), self.armed_faults[number].injection.clone());
        match way {
            CallInjection::KillBefore | CallInjection::KillInside { .. } | CallInjection::KillAfter => {
                self.pending_evidence = Some((fault, format!("{} {evidence}", way.describe())));
            }
            CallInjection::HoldUntilInjected if first => {
                self.inject_and_wait(fault, format!("at {evidence}"))
            }
            CallInjection::Swap { .. } => {
                self.pending_evidence = Some((fault, format!("{} before {evidence}", way.describe())))
            }
            CallInjection::HoldUntilInjected => {}
            way if first => self.send(InjectorEvent::Effective {
                fault,
                evidence: format!("{evidence}: {}", way.describe()),
            }),
            _ => {}
        }
        decision
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        let room = MAX_LINE_BYTES.saturating_sub(self.written_bytes.len()).min(bytes.len());
        self.written_bytes.extend_from_slice(&bytes[..room]);
    }

    fn on_effect(&mut self, done: CallEffect) {
        match done {
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
        let struck = self.kill_switch.kill_all();
        let (fault, evidence) = self.pending_evidence.take().unwrap_or_default();
        let evidence = match struck {
            Ok(()) => format!("every process was {evidence}"),
            Err(error) => format!("the kill failed ({error}): {evidence}"),
        };
        self.send(InjectorEvent::Killed { fault, evidence });
    }

    fn observes_pipe(&self, _pipe: FileId) -> bool {
        true
    }
}
