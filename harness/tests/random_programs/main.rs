//! Performing a call must not change it: random programs of file-system calls run bare, recorded, and with each call
//! performed. Results, errnos, offsets, bytes read and files must be the same, and the recording must yield these
//! files.
//!
//! `TRAINWRECK_PROGRAMS=10000 TRAINWRECK_SEED=7 cargo test -p trainwreck --test random_programs` runs more of them.
//! A failure prints the smallest program that shows it: it belongs into `found.txt`, whose programs run each time.
//! `TRAINWRECK_REPLAY=FILE` runs the programs in a file.
//! Not covered: threads, and calls that wait for another process.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test panics at the first unexpected result, and prints what it has tried"
)]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod program_run;
mod program_strategy;
mod watched_calls;

use std::process::ExitCode;

use libtest_mimic::Trial;
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use program_run::{RunMode, WatchedResult, run_in_mode};
use support::call_programs::{Program, programs_in, run_programs_bare, text_of};
use support::machine::{GATE, missing};
use support::watched_sandbox::WatchedOn;
use watched_calls::GateDefect;

/// Programs that run in one sandbox, one after the other.
const BATCH: usize = 25;
/// Where programs run. The disk is slower, and most file systems of disks can do more.
const FILE_SYSTEMS: [WatchedOn; 2] = [WatchedOn::Disk, WatchedOn::Memory];
/// One of so many batches runs on the disk.
const BATCHES_PER_DISK: usize = 4;
/// At most this many steps make a failing program smaller.
const MAX_SHRINK_STEPS: usize = 60;
/// A program that shows a defect at one call needs few lines.
const MAX_SMALLEST: usize = 8;
/// At most this many failing programs are made smaller and shown.
const MAX_SHOWN: usize = 5;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(trials![
        missing(&GATE);
        random_programs_do_the_same_behind_the_gate,
        programs_that_once_differed_do_the_same,
        a_defect_of_the_gate_is_found_and_its_program_made_smaller,
    ] as Vec<Trial>)
}

type ProgramTree = <BoxedStrategy<Program> as Strategy>::Tree;

/// A number from the environment.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn runner_of(seed: usize) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(seed as u64).to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// A program whose result differs, and how.
struct DifferingProgram {
    index: usize,
    differences: Vec<String>,
}

/// Runs programs bare and otherwise. Returns those that differ.
fn differing_programs(
    programs: &[Program],
    file_system: WatchedOn,
    modes: &[RunMode],
) -> Vec<DifferingProgram> {
    let bare = run_programs_bare(programs, file_system);
    let gated: Vec<(RunMode, Vec<WatchedResult>)> =
        modes.iter().map(|mode| (*mode, run_in_mode(programs, file_system, *mode))).collect();
    let differences_of = |index: usize| {
        let of_mode = |(mode, results): &(RunMode, Vec<WatchedResult>)| {
            let differences = results[index].differences(&bare[index]);
            differences.into_iter().map(|difference| format!("{mode:?}: {difference}")).collect::<Vec<_>>()
        };
        gated.iter().flat_map(of_mode).collect::<Vec<_>>()
    };
    (0..programs.len())
        .map(|index| DifferingProgram { index, differences: differences_of(index) })
        .filter(|program| !program.differences.is_empty())
        .collect()
}

/// How a program differs when it runs alone. Empty if its bare runs differ too: it shows nothing then.
fn differences_alone(program: &Program, file_system: WatchedOn, modes: &[RunMode]) -> Vec<String> {
    let programs = std::slice::from_ref(program);
    let differences = |modes: &[RunMode]| {
        differing_programs(programs, file_system, modes)
            .pop()
            .map(|program| program.differences)
            .unwrap_or_default()
    };
    let found = differences(modes);
    if found.is_empty() || !differences(&[RunMode::Bare; 2]).is_empty() { Vec::new() } else { found }
}

/// Makes a differing program smaller, as long as it differs. Returns the smallest, and how it differs.
fn shrunk(
    mut tree: ProgramTree,
    file_system: WatchedOn,
    modes: &[RunMode],
) -> Option<(Program, Vec<String>)> {
    let mut smallest = None;
    for _ in 0..MAX_SHRINK_STEPS {
        let program = tree.current();
        let differences = differences_alone(&program, file_system, modes);
        let goes_on = match differences.is_empty() {
            true => smallest.is_some() && tree.complicate(),
            false => {
                smallest = Some((program, differences));
                tree.simplify()
            }
        };
        if !goes_on {
            break;
        }
    }
    smallest
}

fn describe(program: &Program, differences: &[String]) -> String {
    format!("{}  {}\n", text_of(std::slice::from_ref(program)), differences.join("\n  "))
}

fn random_programs_do_the_same_behind_the_gate() {
    let modes = [RunMode::Recorded, RunMode::Performed];
    if let Some(file) = std::env::var_os("TRAINWRECK_REPLAY") {
        let programs = programs_in(&std::fs::read_to_string(file).unwrap());
        let on_both = |program| FILE_SYSTEMS.map(|on| differences_alone(program, on, &modes)).concat();
        let differ = programs.iter().map(|program| (program, on_both(program)));
        let differ: Vec<String> = differ
            .filter(|(_, differences)| !differences.is_empty())
            .map(|(program, differences)| describe(program, &differences))
            .collect();
        assert!(differ.is_empty(), "{} of {} programs:\n{}", differ.len(), programs.len(), differ.join("\n"));
        return;
    }
    let (count, seed) = (setting("TRAINWRECK_PROGRAMS", 200), setting("TRAINWRECK_SEED", 1));
    let mut runner = runner_of(seed);
    let strategy = program_strategy::program();
    let (mut shown, mut differing, mut only_together) = (Vec::new(), 0, 0);
    for batch in 0..count.div_ceil(BATCH) {
        let file_system = FILE_SYSTEMS[usize::from(batch % BATCHES_PER_DISK != 0)];
        let trees: Vec<ProgramTree> = (0..BATCH).map(|_| strategy.new_tree(&mut runner).unwrap()).collect();
        let programs: Vec<Program> = trees.iter().map(ValueTree::current).collect();
        let found = differing_programs(&programs, file_system, &modes);
        let mut trees: Vec<Option<ProgramTree>> = trees.into_iter().map(Some).collect();
        for DifferingProgram { index, differences } in found {
            differing += 1;
            if shown.len() >= MAX_SHOWN {
                continue;
            }
            match shrunk(trees[index].take().unwrap(), file_system, &modes) {
                Some((program, differences)) => shown.push(describe(&program, &differences)),
                // What a program does may depend on those before it, or on the moment.
                None => {
                    only_together += 1;
                    eprintln!("not when run alone:\n{}", describe(&programs[index], &differences));
                }
            }
        }
    }
    eprintln!(
        "{count} programs with seed {seed}: {differing} differ, {only_together} of them not when run alone"
    );
    assert!(shown.is_empty(), "{differing} of {count} programs differ:\n{}", shown.join("\n"));
    assert!(only_together * 50 <= count, "too many programs do something else each time: {only_together}");
}

fn programs_that_once_differed_do_the_same() {
    let programs = programs_in(include_str!("found.txt"));
    for file_system in FILE_SYSTEMS {
        let found = differing_programs(&programs, file_system, &[RunMode::Recorded, RunMode::Performed]);
        let shown = found.iter().map(|found| describe(&programs[found.index], &found.differences));
        assert!(found.is_empty(), "{}", shown.collect::<String>());
    }
}

fn a_defect_of_the_gate_is_found_and_its_program_made_smaller() {
    let strategy = program_strategy::program();
    for defect in GateDefect::ALL {
        let modes = [RunMode::Defective(defect)];
        let mut runner = runner_of(2);
        let trees: Vec<ProgramTree> = (0..BATCH).map(|_| strategy.new_tree(&mut runner).unwrap()).collect();
        let programs: Vec<Program> = trees.iter().map(ValueTree::current).collect();
        let found = differing_programs(&programs, WatchedOn::Memory, &modes);
        let index = found.first().unwrap_or_else(|| panic!("{defect:?} was not found")).index;
        if defect == GateDefect::EffectLost {
            let tree = trees.into_iter().nth(index).unwrap();
            let (program, differences) = shrunk(tree, WatchedOn::Memory, &modes).unwrap();
            assert!(program.len() <= MAX_SMALLEST, "{}", describe(&program, &differences));
        }
    }
}
