//! All faults of a run: decides which are due, injects them, follows their effect, and reverts them. Knows no
//! expectation, and starts no process.
//!
//! The life of one fault is in `active_fault.rs` and `termination.rs`, and its phases are in
//! `fault_phase.rs`.

use scenarios::{Ending, Event, NotEffective};

use crate::faults::{FaultContext, RefusedCalls, ServerAnswer};
use crate::observe::Reporter;
use crate::plan::{GpuCountRequest, PlannedFault};
use crate::run::active_fault::ActiveFault;
use crate::run::armed_call_fault::CallProgress;
use crate::run::call_injector::InjectorEvent;
use crate::run::error::RunError;
use crate::run::gpu_call_counters::GpuCallCounters;
use crate::run::missing_effect::{RunProgress, why_not_injected};
use crate::run::moment::Moment;
use crate::run::termination::{AttemptEnd, AttemptTermination, Termination};
use crate::sandbox::ProcessExit;

/// The calls whose failure shows the effect of a fault.
pub(super) struct FaultRefusals<'a> {
    /// The fault's place in the method.
    pub(super) number: u32,
    pub(super) calls: RefusedCalls<'a>,
}

/// The faults of a run, or the counters that a baseline run has in their place.
pub(super) struct FaultSchedule<'a> {
    reporter: &'a Reporter,
    faults: Vec<ActiveFault>,
    terminations: Vec<Termination>,
    gpu_counters: GpuCallCounters,
    /// Last step that the target announced.
    step: u64,
}

impl<'a> FaultSchedule<'a> {
    /// A schedule with every fault armed. Crash states are not part of it: they are there before the target
    /// starts.
    pub(super) fn armed(planned: &[PlannedFault], reporter: &'a Reporter) -> FaultSchedule<'a> {
        let mut schedule = FaultSchedule::of_baseline(&[], reporter);
        for planned in planned {
            if let Some(fault) = ActiveFault::arm(planned) {
                schedule.emit_armed(fault.planned(), fault.mechanism());
                schedule.faults.push(fault);
            } else if let Some(termination) = Termination::arm(planned) {
                schedule.emit_armed(termination.planned(), termination.mechanism());
                schedule.terminations.push(termination);
            }
        }
        schedule
    }

    /// A schedule without faults that counts GPU driver calls.
    pub(super) fn of_baseline(requests: &[GpuCountRequest], reporter: &'a Reporter) -> FaultSchedule<'a> {
        let gpu_counters = GpuCallCounters::new(requests);
        FaultSchedule { reporter, faults: Vec::new(), terminations: Vec::new(), gpu_counters, step: 0 }
    }

    fn emit_armed(&self, planned: &PlannedFault, mechanism: String) {
        let optional = planned.fault.is_optional;
        self.reporter.emit(Event::FaultArmed { fault: planned.id(), mechanism, optional });
    }

    /// The calls whose failure shows the effect of a fault, for each such fault.
    pub(super) fn refused_calls(&self) -> Vec<FaultRefusals<'_>> {
        let refusals = self.faults.iter().filter_map(|fault| {
            Some(FaultRefusals { number: fault.id().number, calls: fault.refused_calls()? })
        });
        refusals.collect()
    }

    /// The GPU driver calls that were counted, in the order of the requests.
    pub(super) fn gpu_calls(&self) -> Vec<u64> {
        self.gpu_counters.counts()
    }

    /// Injects what is due before the target is started for the first time.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn before_first_start(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        self.inject_due(Moment::Start, context)
    }

    /// Injects what is due between the end of an attempt and the next start.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn before_restart(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        self.inject_due(Moment::Restart, context)
    }

    /// Handles a line of output. `step` is the step that the line announces, if it does.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn on_line(
        &mut self,
        line: &str,
        step: Option<u64>,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        self.faults.iter_mut().for_each(|fault| fault.on_line(line, self.reporter));
        for termination in &mut self.terminations {
            if termination.on_line(line) {
                let evidence = format!("the target printed: {line}");
                self.reporter.emit(Event::FaultEffective { fault: termination.id().clone(), evidence });
            }
        }
        if let Some(step) = step {
            self.step = step;
        }
        let at_step = step.map(Moment::Step);
        for moment in at_step.into_iter().chain([Moment::Line(line)]) {
            self.terminate_due(moment, context, attempt)?;
            self.inject_due(moment, context)?;
        }
        Ok(())
    }

    /// Continues all faults, looks for evidence, and reverts those that have reached their end.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn tick(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        self.faults.iter_mut().try_for_each(|fault| fault.tick(context, self.reporter))
    }

    /// Injects what is due by time.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn on_elapsed(
        &mut self,
        moment: Moment<'_>,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        self.inject_due(moment, context)?;
        self.terminations.iter().try_for_each(|termination| termination.ask_again(context, attempt))?;
        self.terminate_due(moment, context, attempt)
    }

    /// Handles what the call injector did, or asks for while a call waits. It knows a fault by its number.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn on_injector_event(
        &mut self,
        event: InjectorEvent,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        match event {
            InjectorEvent::Killed { fault, evidence } => {
                let killer = self.terminations.iter_mut().find(|killer| killer.id().number == fault);
                if let Some(killer) = killer {
                    attempt.end.get_or_insert(AttemptEnd { fault: killer.id().clone(), evidence });
                    killer.on_killed_at_call();
                }
            }
            InjectorEvent::Effective { fault, evidence } => {
                let reporter = self.reporter;
                if let Some(active) = self.fault(fault) {
                    active.on_call_altered(evidence, reporter);
                }
            }
            InjectorEvent::Refused { fault, evidence } => {
                let reporter = self.reporter;
                if let Some(active) = self.fault(fault) {
                    active.on_refused_call(evidence, reporter);
                }
            }
            InjectorEvent::InjectNow { fault, evidence, done } => {
                let waits = |termination: &&mut Termination| {
                    termination.id().number == fault && termination.may_be_injected()
                };
                if let Some(termination) = self.terminations.iter_mut().find(waits) {
                    termination.inject(context, attempt, &evidence)?;
                }
                if let Some(active) = self.fault(fault) {
                    active.inject(context)?;
                }
                // The target continues.
                drop(done);
            }
        }
        Ok(())
    }

    /// A thread of the target has waited for this fault, and goes on although it is not injected, or not done.
    pub(super) fn on_waited_in_vain(&mut self, fault: u32) {
        if let Some(active) = self.fault(fault) {
            active.on_waited_in_vain();
        }
    }

    /// Handles the end of an attempt.
    pub(super) fn on_target_ended(&mut self, ending: Ending, attempt: &AttemptTermination) {
        for termination in &mut self.terminations {
            if let Some(evidence) = termination.on_target_ended(attempt) {
                self.reporter.emit(Event::FaultEffective { fault: termination.id().clone(), evidence });
            }
        }
        self.faults.iter_mut().for_each(|fault| fault.on_target_ended(ending, self.reporter));
    }

    /// The faults at calls that are over. Later calls must not be altered.
    pub(super) fn finished_call_faults(&self) -> impl Iterator<Item = u32> {
        let finished =
            |fault: &&ActiveFault| fault.phase().is_over() && fault.planned().call_trigger().is_some();
        self.faults.iter().filter(finished).map(|fault| fault.id().number)
    }

    /// The faults that wait for a step or another line in this attempt.
    pub(super) fn waiting_for_lines(&self, attempt: &AttemptTermination) -> Vec<u32> {
        let faults = self.faults.iter().filter(|fault| fault.is_awaited());
        let terminations = self.terminations.iter();
        let may_end = |termination: &&Termination| termination.may_be_injected() && !attempt.has_begun();
        let planned =
            faults.map(ActiveFault::planned).chain(terminations.filter(may_end).map(Termination::planned));
        planned.filter(|planned| planned.line_trigger().is_some()).map(|planned| planned.number).collect()
    }

    /// What clients of the target have been answered, each once.
    pub(super) fn take_answers(&mut self) -> Vec<ServerAnswer> {
        self.faults.iter_mut().flat_map(ActiveFault::take_answers).collect()
    }

    /// How commands have ended that faults run, each once.
    pub(super) fn take_command_exits(&mut self) -> Vec<ProcessExit> {
        self.faults.iter_mut().flat_map(ActiveFault::take_command_exits).collect()
    }

    /// Whether a fault has stopped the target.
    pub(super) fn pauses_target(&self) -> bool {
        self.faults.iter().any(ActiveFault::pauses_target)
    }

    /// Reverts every fault, so that the probes at the end see an undisturbed machine.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn revert_all(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        // Evidence first: the end of one fault may look like an effect of another.
        self.tick(context)?;
        self.faults.iter_mut().try_for_each(|fault| fault.end(context, self.reporter))?;
        let phases = self.faults.iter().map(ActiveFault::phase);
        let mut phases = phases.chain(self.terminations.iter().map(Termination::phase));
        assert!(phases.all(|phase| !phase.is_active()), "no fault outlasts its trial");
        Ok(())
    }

    /// Emits which faults had no effect, and why. `calls`: how far the call injector got with each fault.
    pub(super) fn emit_not_effective(&self, calls: impl Fn(u32) -> Option<CallProgress>) {
        let faults = self.faults.iter().filter_map(|fault| {
            let withdrawn = fault.withdrawn_evidence();
            if fault.phase().was_effective() && withdrawn.is_none() {
                return None;
            }
            let missing = || withdrawn.unwrap_or_else(|| fault.missing_evidence());
            let injected = fault.phase().was_injected().then(missing);
            Some(self.not_effective(fault.planned(), injected, calls(fault.id().number)))
        });
        let terminations = self.terminations.iter().filter(|termination| !termination.was_effective());
        let terminations = terminations.map(|termination| {
            let injected = termination.was_injected().then(|| termination.missing_evidence());
            self.not_effective(termination.planned(), injected, calls(termination.id().number))
        });
        let mut not_effective: Vec<NotEffective> = faults.chain(terminations).collect();
        not_effective.sort();
        for not_effective in not_effective {
            self.reporter.emit(Event::FaultNotEffective(not_effective));
        }
    }

    /// `injected`: what is missing, if the fault was injected.
    fn not_effective(
        &self,
        planned: &PlannedFault,
        injected: Option<String>,
        calls: Option<CallProgress>,
    ) -> NotEffective {
        let progress = RunProgress { step: self.step, calls: calls.as_ref() };
        let pattern = planned.fault.effective_if_output.as_ref().filter(|_| injected.is_some());
        let without_line =
            pattern.map(|pattern| format!("the target printed no line that matches `{pattern}`"));
        let from_call = calls.as_ref().and_then(|calls| calls.why.clone());
        let not_reached = injected.is_none()
            && planned.waits_for_counted_call()
            && calls.as_ref().is_some_and(|calls| !calls.is_decided);
        let why = without_line.or(from_call).or(injected);
        let why = why.unwrap_or_else(|| why_not_injected(planned, progress));
        NotEffective { fault: planned.id(), why, not_reached }
    }

    fn fault(&mut self, number: u32) -> Option<&mut ActiveFault> {
        self.faults.iter_mut().find(|fault| fault.id().number == number)
    }

    /// Injects every fault that is due, and starts the GPU counters that are due.
    fn inject_due(&mut self, moment: Moment<'_>, context: &FaultContext<'_>) -> Result<(), RunError> {
        self.gpu_counters.start_due(moment, context)?;
        let mut due = self.faults.iter_mut().filter(|fault| moment.is_due(&fault.planned().fault.when));
        due.try_for_each(|fault| fault.inject(context))
    }

    /// Injects the first termination that is due, at most one per attempt.
    fn terminate_due(
        &mut self,
        moment: Moment<'_>,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        let is_due = |termination: &&mut Termination| {
            termination.may_be_injected() && termination.trigger().is_some_and(|when| moment.is_due(when))
        };
        if attempt.has_begun() {
            return Ok(());
        }
        match self.terminations.iter_mut().find(is_due) {
            Some(termination) => termination.inject(context, attempt, &format!("after step {}", self.step)),
            None => Ok(()),
        }
    }
}
