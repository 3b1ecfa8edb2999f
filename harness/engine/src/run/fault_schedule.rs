//! All faults of a run: decides which are due, injects them, follows their effect, and reverts them. Knows no
//! expectation, and starts no process.
//!
//! The life of one fault is in `active_fault.rs` and `termination.rs`, and its phases are in
//! `fault_phase.rs`.

use scenarios::{Ending, Event};

use crate::faults::FaultContext;
use crate::observe::Reporter;
use crate::plan::{GpuCountRequest, PlannedFault};
use crate::run::active_fault::ActiveFault;
use crate::run::call_injector::InjectorEvent;
use crate::run::error::RunError;
use crate::run::gpu_call_counters::GpuCallCounters;
use crate::run::moment::Moment;
use crate::run::termination::{AttemptTermination, Termination};
use crate::target::OutputPatterns;

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
                schedule.emit_armed(fault.name(), fault.mechanism());
                schedule.faults.push(fault);
            } else if let Some(termination) = Termination::arm(planned) {
                schedule.emit_armed(termination.name(), termination.mechanism());
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

    fn emit_armed(&self, fault: &str, mechanism: String) {
        self.reporter.emit(Event::FaultArmed { fault: fault.into(), mechanism });
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

    /// Handles a line of output. `step` is the step that the line announces, if it does.
    ///
    /// # Errors
    /// If a mechanism fails.
    pub(super) fn on_line(
        &mut self,
        line: &str,
        step: Option<u64>,
        patterns: &OutputPatterns<'_>,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        self.faults.iter_mut().for_each(|fault| fault.on_line(line, patterns, self.reporter));
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
        self.terminate_due(moment, context, attempt)
    }

    /// Handles what the call injector did, or asks for while a call waits. It knows a fault by its name.
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
                attempt.evidence.get_or_insert(evidence);
                let killed = self.terminations.iter_mut().filter(|termination| termination.name() == fault);
                killed.for_each(Termination::on_killed_at_call);
            }
            InjectorEvent::Effective { fault, evidence } => {
                if let Some(active) = self.faults.iter_mut().find(|active| active.name() == fault) {
                    active.on_call_altered(evidence, self.reporter);
                }
            }
            InjectorEvent::InjectNow { fault, evidence, done } => {
                let waits = |termination: &&mut Termination| {
                    termination.name() == fault && termination.may_be_injected()
                };
                if let Some(termination) = self.terminations.iter_mut().find(waits) {
                    termination.inject(context, attempt, &evidence)?;
                }
                for active in self.faults.iter_mut().filter(|active| active.name() == fault) {
                    active.inject(context)?;
                }
                // The target continues.
                drop(done);
            }
        }
        Ok(())
    }

    /// Handles the end of an attempt.
    pub(super) fn on_target_ended(&mut self, ending: Ending, attempt: &AttemptTermination) {
        if let Some(evidence) = &attempt.evidence {
            // Of several terminations in one trial, the evidence names the first one.
            let fault = self.terminations.first().map(|first| first.name().to_owned()).unwrap_or_default();
            self.reporter.emit(Event::FaultEffective { fault, evidence: evidence.clone() });
        }
        self.terminations.iter_mut().for_each(Termination::on_target_ended);
        self.faults.iter_mut().for_each(|fault| fault.on_target_ended(ending, self.reporter));
    }

    /// The faults at calls that are over. Later calls must not be altered.
    pub(super) fn finished_call_faults(&self) -> impl Iterator<Item = &str> {
        let finished =
            |fault: &&ActiveFault| fault.phase().is_over() && fault.planned().call_trigger().is_some();
        self.faults.iter().filter(finished).map(ActiveFault::name)
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
        self.faults.iter_mut().try_for_each(|fault| fault.finish(context, self.reporter))?;
        let phases = self.faults.iter().map(ActiveFault::phase);
        let mut phases = phases.chain(self.terminations.iter().map(Termination::phase));
        assert!(phases.all(|phase| !phase.is_active()), "no fault outlasts its trial");
        Ok(())
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
