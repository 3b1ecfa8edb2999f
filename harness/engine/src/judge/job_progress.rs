//! How far one job has come, and what was promised of it. Pure; does not know which lines are about which job.

/// The steps of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JobProgress {
    /// The newest step announced as durable that has not been found to be lost.
    pub(super) acknowledged: Option<u64>,
    /// The last step that it did, or from which it was resumed.
    pub(super) position: Option<u64>,
    /// The step from which it was last begun: 0 is from scratch. `None`: nothing was said of it.
    pub(super) began_at: Option<u64>,
    /// Whether a step was announced since then.
    pub(super) has_trained: bool,
    /// Whether it announced its end.
    pub(super) is_finished: bool,
    /// The last start of the target in which it was mentioned; 0: in none.
    pub(super) mentioned_in: u32,
    /// The last start in which it was resumed or did a step.
    pub(super) worked_in: u32,
}

/// A resume, with the last step and the acknowledged step before it. The worst resume of a trial decides its
/// outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resumption {
    pub(super) step_at_fault: u64,
    pub(super) acknowledged: Option<u64>,
    pub(super) resumed_from: u64,
}

impl Resumption {
    pub(super) fn lost_steps(&self) -> u64 {
        self.step_at_fault.saturating_sub(self.resumed_from)
    }

    /// Whether acknowledged work was lost.
    pub(super) fn is_broken_promise(&self) -> bool {
        Some(self.resumed_from) < self.acknowledged
    }

    /// Orders resumes: first whether acknowledged work was lost, then how many steps.
    pub(super) fn severity(&self) -> (bool, u64) {
        (self.is_broken_promise(), self.lost_steps())
    }
}

/// Steps that came in an order in which no baseline does them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderFault {
    /// The step did not come.
    LeftOut { step: u64, after: u64 },
    /// The step came again, without a resume before it.
    Repeated { step: u64, after: u64 },
}

impl std::fmt::Display for OrderFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OrderFault::LeftOut { step, after } => {
                write!(f, "step {step} was left out after step {after}; the baseline did it")
            }
            OrderFault::Repeated { step, after } => {
                write!(f, "step {step} was done again after step {after}, without a resume between")
            }
        }
    }
}

/// The steps that a baseline announces: the first one, and the distance to each next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StepGrid {
    pub(super) first: u64,
    pub(super) stride: u64,
}

impl StepGrid {
    /// The first step of the grid after `step`.
    fn next_after(self, step: u64) -> u64 {
        match step.checked_sub(self.first) {
            None => self.first,
            Some(distance) => self.first + (distance / self.stride + 1) * self.stride,
        }
    }
}

impl JobProgress {
    /// Whether anything was said of it.
    pub(super) fn is_known(&self) -> bool {
        self.position.is_some() || self.acknowledged.is_some()
    }

    /// It is resumed from this step. Returns what that means, if there was something to resume.
    pub(super) fn resume(&mut self, from: u64) -> Option<Resumption> {
        let before = self.position.or(self.acknowledged);
        let resumption = before.map(|step_at_fault| Resumption {
            step_at_fault,
            acknowledged: self.acknowledged,
            resumed_from: from,
        });
        if resumption.is_some_and(|resumption| resumption.is_broken_promise()) {
            // What is lost is told once.
            self.acknowledged = Some(from).filter(|from| *from > 0);
        }
        (self.position, self.began_at, self.has_trained) = (Some(from), Some(from), false);
        resumption
    }

    /// It goes back to this step on purpose.
    pub(super) fn roll_back(&mut self, to: u64) {
        (self.position, self.has_trained) = (Some(to), false);
    }

    /// It has done this step. Returns what is wrong with the order, as far as the grid of the baseline's steps
    /// tells it. Directly after a resume the step that was resumed from may be the next one: some trainers announce
    /// the step that is done, others the one that follows.
    pub(super) fn step(&mut self, step: u64, grid: Option<StepGrid>) -> Option<OrderFault> {
        let fault = self.position.zip(grid).and_then(|(after, grid)| {
            let is_again = if self.has_trained { step <= after } else { step < after };
            let expected = grid.next_after(after);
            match (is_again, step > expected) {
                (true, _) => Some(OrderFault::Repeated { step, after }),
                (false, true) => Some(OrderFault::LeftOut { step: expected, after }),
                (false, false) => None,
            }
        });
        (self.position, self.has_trained) = (Some(step), true);
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of steps that follow a resume from step 6.
    fn faults(steps: &[u64], grid: Option<StepGrid>) -> Vec<OrderFault> {
        let mut job = JobProgress::default();
        job.resume(6);
        steps.iter().filter_map(|step| job.step(*step, grid)).collect()
    }

    #[test]
    fn the_first_step_that_is_left_out_or_repeated_is_named() {
        let grid = Some(StepGrid { first: 1, stride: 1 });
        assert_eq!(faults(&[7, 8, 9], grid), []);
        assert_eq!(faults(&[6, 7, 8], grid), [], "the step that follows is announced as 6");
        assert_eq!(faults(&[7, 9], grid), [OrderFault::LeftOut { step: 8, after: 7 }]);
        assert_eq!(faults(&[8, 9], grid), [OrderFault::LeftOut { step: 7, after: 6 }]);
        assert_eq!(faults(&[7, 8, 8], grid), [OrderFault::Repeated { step: 8, after: 8 }]);
        assert_eq!(faults(&[7, 8, 7], grid), [OrderFault::Repeated { step: 7, after: 8 }]);
        assert_eq!(faults(&[5, 6, 7], grid), [OrderFault::Repeated { step: 5, after: 6 }]);
        assert_eq!(faults(&[7, 9, 9, 2], None), [], "nothing is known of the baseline's steps");
    }

    #[test]
    fn steps_that_are_announced_now_and_then_have_a_distance() {
        let grid = Some(StepGrid { first: 10, stride: 10 });
        assert_eq!(faults(&[10, 20, 30], grid), []);
        assert_eq!(faults(&[20], grid), [OrderFault::LeftOut { step: 10, after: 6 }]);
    }

    #[test]
    fn step_0_is_an_ordinary_promise() {
        let mut job = JobProgress { acknowledged: Some(0), position: Some(2), ..JobProgress::default() };
        let resumption = job.resume(0).expect("there was something to resume");
        assert!(!resumption.is_broken_promise());
        assert_eq!(resumption.lost_steps(), 2);
    }
}
