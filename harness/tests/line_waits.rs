//! A fault at a line comes before the next line of the same thread, and a target waits for a command if the scenario
//! says so: it then changes no file and prints nothing. A wait that ends too early is no success.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::process::ExitCode;

use scenarios::{Event, Verdict};
use support::machine::{GATE, missing};
use support::scenario_run::{ScenarioFiles, ScenarioRun};

fn main() -> ExitCode {
    support::trial::run(trials![
        missing(&GATE);
        a_fault_at_a_line_comes_before_the_next_line,
        a_target_waits_for_a_command_if_the_scenario_says_so,
        a_target_that_waits_changes_no_file,
        a_command_that_outlasts_the_wait_is_not_effective,
    ])
}

/// A trainer without any wait: it has printed hundreds of steps before somebody has read one.
const HASTY: &str = r"
version: 1
id: hasty
title: a trainer that prints steps as fast as it can
program: sh
start: ['{program}', -c, '[ -e begun ] && echo had begun $(tail -n 1 begun); exec 3>>begun; STEPS; echo finished with 1']
announces: {step: '^(step |worker: )(?<step>\d+)'}
same: '^finished with (?<value>\d+)'
timeouts: {stall: 30 s, finish: 120 s}
";
const ALONE: &str = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i >&3; echo step $i; done";
/// A worker tells its supervisor, which prints it. The last one, the supervisor, is the main process.
const WITH_WORKER: &str = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i >&3; echo worker: $i; done | \
                           while read w n; do echo step $n; done";

fn a_fault_at_a_line_comes_before_the_next_line() {
    let methods = ["crash: {when: {step: 400}}", "crash: {when: {output: '^(step|worker:) 400$'}}"];
    for (steps, method) in
        [ALONE, WITH_WORKER].into_iter().flat_map(|steps| methods.map(|method| (steps, method)))
    {
        let scenario = format!(
            "version: 1\nid: proc-01\ntitle: a fault at a line\nseverity: extra\ntarget: {{use: target.yaml}}\n\
             method:\n  - {method}\nexpect:\n  - always: {{outcome: [recovered]}}\n"
        );
        let run = ScenarioFiles { target: HASTY.replace("STEPS", steps), scenario }.run();
        let trial = run.events().skip_while(|event| !matches!(event, Event::TrialStarted { .. }));
        let first_start = trial.take_while(|event| !matches!(event, Event::TargetEnded { .. }));
        let printed = first_start.filter_map(|event| match event {
            Event::Step { step, .. } => Some(*step),
            _ => None,
        });
        assert_eq!(printed.max(), Some(400), "{method} {steps}: {}", run.printed);
        assert!(run.trial_output().contains(&"had begun 400"), "{method} {steps}: {:?}", run.trial_output());
    }
}

/// Runs a command at step 400 of a trainer with these steps, in whose root it makes the file `seen`.
fn run_at_step_400(steps: &str, command: &str, target_waits: bool, seen: &str) -> ScenarioRun {
    let when = "when: {output: '^step 400$'}";
    let scenario = format!(
        "version: 1\nid: proc-01\ntitle: a command at a line\nseverity: extra\ntarget: {{use: target.yaml}}\n\
         method:\n  - run-command: {{command: [sh, -c, '{command}'], target-waits: {target_waits}, {when}}}\n\
         expect:\n  - always: {{outcome: [recovered]}}\n  \
         - always: {{files: {{matching: seen, containing: '{seen}', min: 1}}}}\n"
    );
    // A command for which it does not wait needs time to end.
    let steps = format!("cd {{root}}; exec 3>>begun; {steps}; [ -e seen ] || sleep 2");
    ScenarioFiles { target: HASTY.replace("STEPS", &steps), scenario }.run()
}

fn a_target_waits_for_a_command_if_the_scenario_says_so() {
    let last_step = "sleep 0.3; echo last $(tail -n 1 {root}/begun). >{root}/seen";
    let held = run_at_step_400(ALONE, last_step, true, "last 400.");
    assert!(matches!(held.verdict(), Verdict::Survived), "{}", held.printed);
    let free = run_at_step_400(ALONE, last_step, false, "last 400.");
    assert!(matches!(free.verdict(), Verdict::Violated { .. }), "{}", free.printed);
}

/// This trainer prints nothing after the line.
const SILENT: &str = "echo step 400; : >later";

fn a_target_that_waits_changes_no_file() {
    let looks = "sleep 0.3; if [ -e {root}/later ]; then echo late; else echo held; fi >{root}/seen";
    for (target_waits, seen) in [(true, "held"), (false, "late")] {
        let run = run_at_step_400(SILENT, looks, target_waits, seen);
        assert!(matches!(run.verdict(), Verdict::Survived), "{seen}: {}", run.printed);
    }
}

fn a_command_that_outlasts_the_wait_is_not_effective() {
    let run = run_at_step_400(&format!("{SILENT}; sleep 3"), ": >{root}/seen; sleep 4", true, "");
    assert!(matches!(run.verdict(), Verdict::Inconclusive { .. }), "{}", run.printed);
    let why = "run-command: the target went on before the end of 1 command";
    assert!(run.printed.contains(why), "{}", run.printed);
}
