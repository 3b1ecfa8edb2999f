//! Follows what a target prints: emits the events that its lines announce, and decides which lines are
//! recorded. Knows no fault.

use std::collections::VecDeque;

use regex::Regex;
use scenarios::{Event, Fact, OutputLine, OutputStream, Scenario, TargetFile};

use crate::announcements::{Announced, Announcement, AnnouncementPatterns};
use crate::observe::Reporter;

/// Lines that are recorded of the end of a failed run.
const MAX_LAST_LINES: usize = 20;
/// Unrecognised lines of standard output that are recorded of one trial.
const MAX_KEPT_LINES: usize = 400;

/// What a target has printed so far.
pub(super) struct TargetOutput<'a> {
    target: &'a TargetFile,
    patterns: AnnouncementPatterns,
    reporter: &'a Reporter,
    /// Patterns of lines that the scenario needs in the record.
    requested_lines: Vec<Regex>,
    /// Number of lines that were recorded at once.
    kept_lines: usize,
    /// Lines that are recorded only if the run fails.
    last_lines: VecDeque<OutputLine>,
    phase_end_hook: Option<PhaseEndHook>,
}

/// Called at each end of a phase.
struct PhaseEndHook {
    phase: String,
    call: Box<dyn FnMut() + Send>,
}

impl<'a> TargetOutput<'a> {
    /// Follows the output of this target. The lines that the scenario's expectations and faults need are
    /// recorded.
    pub(super) fn new(
        target: &'a TargetFile,
        scenario: &Scenario,
        reporter: &'a Reporter,
    ) -> TargetOutput<'a> {
        TargetOutput {
            target,
            patterns: AnnouncementPatterns::of_target(target),
            reporter,
            requested_lines: requested_lines(scenario),
            kept_lines: 0,
            last_lines: VecDeque::new(),
            phase_end_hook: None,
        }
    }

    /// Calls `call` at each end of this phase.
    pub(super) fn on_phase_end(&mut self, phase: &str, call: Box<dyn FnMut() + Send>) {
        self.phase_end_hook = Some(PhaseEndHook { phase: phase.to_owned(), call });
    }

    /// Handles one line. Returns the training step that it announces, if it does.
    pub(super) fn on_line(&mut self, stream: OutputStream, line: &str) -> Option<u64> {
        let announcements = self.patterns.parse(line);
        announcements.iter().filter_map(Announcement::event).for_each(|event| self.reporter.emit(event));
        self.keep_line(stream, line, &announcements);
        self.run_phase_end_hook(line);
        announcements.iter().find_map(|announcement| match announcement.what {
            Announced::Step { step, .. } => Some(step),
            _ => None,
        })
    }

    /// Records a line that is needed later. Other unrecognised lines are held back for
    /// [`TargetOutput::emit_last_lines`].
    fn keep_line(&mut self, stream: OutputStream, line: &str, announcements: &[Announcement]) {
        let is_finish = |announcement: &Announcement| matches!(announcement.what, Announced::Finished { .. });
        let is_other = announcements.iter().all(is_finish);
        let is_requested = announcements.iter().any(is_finish)
            || self.requested_lines.iter().any(|pattern| pattern.is_match(line));
        let is_unrecognised = is_other && stream == OutputStream::Stdout && self.kept_lines < MAX_KEPT_LINES;
        if is_requested || is_unrecognised {
            self.kept_lines += 1;
            self.reporter.emit(Event::Output { stream, line: line.to_owned() });
        } else if is_other {
            self.last_lines.push_back(OutputLine { stream, line: line.to_owned() });
            if self.last_lines.len() > MAX_LAST_LINES {
                self.last_lines.pop_front();
            }
        }
    }

    /// Records the last lines before a failure.
    pub(super) fn emit_last_lines(&mut self) {
        for OutputLine { stream, line } in std::mem::take(&mut self.last_lines) {
            self.reporter.emit(Event::Output { stream, line });
        }
    }

    fn run_phase_end_hook(&mut self, line: &str) {
        if let Some(hook) = &mut self.phase_end_hook
            && self.target.phases().get(&hook.phase).is_some_and(|phase| phase.ends().is_match(line))
        {
            (hook.call)();
        }
    }
}

/// Patterns of the lines that the scenario's expectations and faults need.
fn requested_lines(scenario: &Scenario) -> Vec<Regex> {
    let expected = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::Output(pattern) => Some(pattern.clone()),
        _ => None,
    });
    let effective_if = scenario.method().iter().filter_map(|fault| fault.effective_if_output.clone());
    expected.chain(effective_if).collect()
}
