//! Runs programs of calls bare, recorded, or with each call performed by the supervisor, and compares. Knows not
//! where they come from.

use std::sync::{Arc, Mutex};

use engine::explore::{OpRecorder, RecorderConfig, TreeDifference, WatchedRoot, copy_tree};
use engine::gate::{CallKind, FilterOptions};

use crate::support::call_programs::{
    InterpreterRun, Program, ProgramResult, program_of, run_programs, run_programs_bare,
};
use crate::support::watched_sandbox::{WatchedOn, WatchedSandbox};
use crate::watched_calls::{GateDefect, PerformedCalls, RecordedCalls};

/// How programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunMode {
    Bare,
    /// As a run whose recording is explored.
    Recorded,
    /// As a run in which faults are injected at all calls, except that the faults change nothing.
    Performed,
    /// Recorded by a gate that does something wrong.
    Defective(GateDefect),
}

/// What a program did in one of the modes.
pub(crate) struct WatchedResult {
    result: ProgramResult,
    /// Where the recording differs from the tree, or is not complete.
    not_recorded: Vec<String>,
}

impl WatchedResult {
    /// What is different from the bare result, one line each.
    pub(crate) fn differences(&self, bare: &ProgramResult) -> Vec<String> {
        [bare.differences(&self.result), self.not_recorded.clone()].concat()
    }
}

/// What is wrong with a recording.
#[derive(Default)]
struct RecordingFaults {
    /// The program and the difference from its tree.
    differences: Vec<(Option<usize>, String)>,
    /// What the whole recording lacks.
    gaps: Option<String>,
}

/// Runs programs one after the other in one sandbox.
pub(crate) fn run_in_mode(programs: &[Program], file_system: WatchedOn, mode: RunMode) -> Vec<WatchedResult> {
    let recorded = match mode {
        RunMode::Bare => {
            let results = run_programs_bare(programs, file_system);
            return results
                .into_iter()
                .map(|result| WatchedResult { result, not_recorded: Vec::new() })
                .collect();
        }
        RunMode::Performed => run_programs(programs, file_system, perform),
        RunMode::Recorded => run_programs(programs, file_system, |setup, argv| record(setup, argv, None)),
        RunMode::Defective(defect) => {
            run_programs(programs, file_system, |setup, argv| record(setup, argv, Some(defect)))
        }
    };
    let faults = &recorded.noted;
    let not_recorded = |index: usize| {
        let own = faults.differences.iter().filter(move |(program, _)| *program == Some(index));
        own.map(|(_, difference)| format!("recorded: {difference}")).chain(faults.gaps.clone()).collect()
    };
    let results = recorded.results.into_iter().enumerate();
    results.map(|(index, result)| WatchedResult { result, not_recorded: not_recorded(index) }).collect()
}

fn perform(setup: &WatchedSandbox, argv: &[&str]) -> InterpreterRun<RecordingFaults> {
    let handler = Arc::new(Mutex::new(PerformedCalls));
    let extra_kinds = vec![CallKind::Read, CallKind::OpenToRead, CallKind::Close];
    let options = FilterOptions { extra_kinds, connections: false, ..FilterOptions::default() };
    let (exit, output) = setup.run(argv, &options, &handler);
    InterpreterRun { exit, output, noted: RecordingFaults::default() }
}

fn record(
    setup: &WatchedSandbox,
    argv: &[&str],
    defect: Option<GateDefect>,
) -> InterpreterRun<RecordingFaults> {
    let host_dir = setup.sandbox.host_path(&setup.watched);
    std::fs::create_dir(&setup.copy).unwrap();
    copy_tree(&host_dir, &setup.copy).unwrap();
    let payload_log = setup.dir.path().join("payload");
    let roots = [WatchedRoot { seen_by_target: setup.watched.clone(), seen_by_harness: host_dir }];
    let config = RecorderConfig {
        roots: &roots,
        originals: &[vec![setup.copy.clone()]],
        payload_log: &payload_log,
        output_pipes: Vec::new(),
        saved_pattern: None,
        announced: Vec::new(),
        phase: None,
    };
    let recorder = RecordedCalls { recorder: OpRecorder::new(config).unwrap(), defect };
    let recorder = Arc::new(Mutex::new(recorder));
    let (exit, output) = setup.run(argv, &FilterOptions::default(), &recorder);
    let recorder = &mut recorder.lock().unwrap().recorder;
    let mut gaps: Vec<String> =
        recorder.gate_failure().into_iter().map(|failure| format!("{failure:?}")).collect();
    match recorder.finish().map(|recording| recording.gaps.clone()) {
        Ok(found) if found.unknown_files > 0 => gaps.push(format!("{} unknown files", found.unknown_files)),
        Ok(found) if !found.refused_calls.is_empty() => {
            gaps.push(format!("refused: {:?}", found.refused_calls))
        }
        Ok(_) => {}
        Err(error) => gaps.push(format!("the recording could not be finished: {error}")),
    }
    let of_program =
        |difference: &TreeDifference| (program_of(&difference.path, &setup.watched), difference.to_string());
    let differences = match recorder.differences(&roots) {
        Ok(differences) => differences.iter().map(of_program).collect(),
        Err(error) => {
            gaps.push(format!("the recording could not be compared: {error}"));
            Vec::new()
        }
    };
    let noted = RecordingFaults { differences, gaps: gaps.into_iter().next() };
    InterpreterRun { exit, output, noted }
}
