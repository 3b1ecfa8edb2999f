//! Policies that deny calls although the modes of files allow them: each right is denied below the root and nowhere
//! else, a call that the gate makes is denied as the target's own would be, and trainers are judged by what they do.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use engine::landlock::FileRights;
use engine::sandbox::{Confinement, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec};
use libtest_mimic::Trial;
use scenarios::{Outcome, Verdict};

use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, Need, missing};
use crate::support::ordinary_user::OrdinaryUser;
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};
use crate::support::small_target::{LONG_STALL, SmallTarget};

/// Each right, and what the kernel then says to `denied_calls.py` below the root.
const RIGHTS: [(&str, FileRights, &[&str]); 12] = [
    ("read-file", FileRights::READ_FILE, &["read-file"]),
    ("write-file", FileRights::WRITE_FILE, &["write-file", "truncate-open", "make-file"]),
    ("truncate", FileRights::TRUNCATE, &["truncate", "truncate-open"]),
    ("read-dir", FileRights::READ_DIR, &["read-dir"]),
    ("make-dir", FileRights::MAKE_DIR, &["make-dir"]),
    (
        "make-file",
        FileRights::MAKE_FILE,
        &[
            "make-file",
            "make-file-node",
            "make-file-link",
            "remove-file-rename",
            "rename-across",
            "rename-across-link",
        ],
    ),
    ("make-link", FileRights::MAKE_LINK, &["make-link"]),
    ("make-pipe", FileRights::MAKE_PIPE, &["make-pipe"]),
    ("make-socket", FileRights::MAKE_SOCKET, &["make-socket"]),
    ("remove-file", FileRights::REMOVE_FILE, &["remove-file", "remove-file-rename", "rename-across"]),
    ("remove-dir", FileRights::REMOVE_DIR, &["remove-dir"]),
    ("rename-across", FileRights::REFER, &["rename-across", "rename-across-link"]),
];

pub(crate) fn trials() -> Vec<Trial> {
    let landlock = [Need::Mechanism("landlock"), Need::Program("python3")];
    let mut trials: Vec<Trial> = trials![
        missing(GATE.iter().chain(&landlock));
        each_right_is_denied_below_the_root_only_with_and_without_the_gate,
        a_trainer_that_ignores_a_denied_save_is_found_and_one_that_refuses_is_not,
        a_policy_under_which_no_call_failed_does_not_count,
    ];
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::OrdinaryUserWith("landlock")]));
        a_mode_that_denies_is_no_evidence,
    ]);
    trials
}

/// What is printed for operations that fail with this right denied.
fn lines(operations: &[&str], right: &str) -> [String; 2] {
    let error = if right == "rename-across" { "Invalid cross-device link" } else { "Permission denied" };
    let denied: Vec<String> = operations.iter().map(|name| format!("{name} {error}")).collect();
    [format!("below: {}", denied.join(", ")), "outside: ".into()]
}

fn each_right_is_denied_below_the_root_only_with_and_without_the_gate() {
    let program = workspace().join("harness/tests/targets/denied_calls.py");
    for (right, denied, operations) in RIGHTS {
        let expected = lines(operations, right);
        let printed = run_without_gate(&program, denied);
        assert!(expected.iter().all(|line| printed.lines().any(|other| other == line)), "{right}: {printed}");
        let method =
            format!("  - crash: {{when: {{step: 1}}}}\n  - landlock: {{deny: [{right}], when: restart}}\n");
        let start = format!("['{{program}}', '{}', '{{root}}', '/tmp/outside']", program.display());
        let target = SmallTarget { program: "python3", start: &start, stall: LONG_STALL, more: "" };
        let run = run(&target, &method);
        let shown = run.trial_output();
        assert!(expected.iter().all(|line| shown.contains(&line.as_str())), "{right}: {shown:?}");
        let evidence = run.trials()[0].evidence.join("\n");
        let errno = if right == "rename-across" { "EXDEV" } else { "EACCES" };
        assert!(evidence.contains(&format!("failed with {errno}")), "{right}: {evidence}");
    }
}

/// What the program prints if the kernel makes all its calls.
fn run_without_gate(program: &Path, denied: FileRights) -> String {
    let dir = tempfile::tempdir().unwrap();
    let sandbox_dir = dir.path().join("sandbox");
    std::fs::create_dir(&sandbox_dir).unwrap();
    let root = Path::new("/trainwreck-test/root");
    let sandbox = Sandbox::build(SandboxSpec {
        dir: sandbox_dir,
        visible_root: Some(root.into()),
        distinct_pids: false,
        mounts: Vec::new(),
        binds: Vec::new(),
        cgroups: Vec::new(),
        host_access: HostAccess::default(),
        cwd: "/".into(),
    })
    .unwrap();
    let start = || {
        let argv = ["python3".into(), program.into(), root.into(), "/tmp/outside".into()].to_vec();
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        let mut process = sandbox.spawn(&LaunchSpec { argv, env: vec![path], cwd: None }).unwrap();
        let outputs = process.take_outputs().unwrap();
        let exit = process.wait_timeout(Duration::from_secs(60));
        let mut printed = String::new();
        for output in [outputs.stdout, outputs.stderr] {
            File::from(output).read_to_string(&mut printed).unwrap();
        }
        assert_eq!(exit, Some(ProcessExit::Exited(0)), "{printed}");
        printed
    };
    start();
    sandbox.confine_starts(Some(Confinement { denied, below: root.into() }));
    let printed = start();
    sandbox.close().unwrap();
    printed
}

/// Runs a method against a trainer. It must recover, or refuse with exit code 13.
fn run(target: &SmallTarget<'_>, method: &str) -> ScenarioRun {
    let scenario = format!(
        "version: 1\nid: fs-01\ntitle: a policy under test\nseverity: extra\ntarget: {{use: target.yaml}}\n\
         method:\n{method}expect:\n  - always: {{outcome: [recovered, refused]}}\n"
    );
    ScenarioFiles { target: target.to_yaml(), scenario }.run()
}

/// A trainer that saves each step as a file of its own, and does this if it can't.
fn saves_or(otherwise: &str) -> String {
    format!(
        "['{{program}}', -c, 'cd $1/ckpt; i=0; for f in *; do [ -f $f ] && [ $f -gt $i ] && i=$f; done; \
         echo resumed from step $i; while [ $i -lt 9 ]; do sleep 0.05; i=$((i+1)); echo step $i; \
         (echo $i >$i) 2>/dev/null || {otherwise}; echo saved step $i; done; echo finished with 9', sh, '{{root}}']"
    )
}

const MORE: &str = "refused-exits: [13]";

fn a_trainer_that_ignores_a_denied_save_is_found_and_one_that_refuses_is_not() {
    // The trainer is down at step 3, and a policy is in force from then on until it has trained some steps more.
    let method = "  - crash: {when: {step: 3}}\n  - landlock: {deny: [make-file], when: restart}\n  \
                  - crash: {optional: true, when: {step: 7}}\n";
    let judged = |otherwise: &str| {
        let start = saves_or(otherwise);
        run(&SmallTarget { program: "/bin/sh", start: &start, stall: LONG_STALL, more: MORE }, method)
    };
    let bad = judged("true");
    assert_eq!(bad.outcomes(), [Outcome::LostWork], "{}", bad.printed);
    assert!(matches!(bad.verdict(), Verdict::Violated { .. }), "{}", bad.printed);
    let sound = judged("exit 13");
    assert_eq!(sound.outcomes(), [Outcome::Refused], "{}", sound.printed);
    assert_eq!(*sound.verdict(), Verdict::Survived, "{}", sound.printed);
}

fn a_policy_under_which_no_call_failed_does_not_count() {
    let start = saves_or("exit 13");
    let target = SmallTarget { program: "/bin/sh", start: &start, stall: LONG_STALL, more: MORE };
    for (method, why) in [
        (
            "  - crash: {when: {step: 3}}\n  - landlock: {deny: [make-dir], when: restart}\n",
            "was started under the policy, and no call below the root failed because of it",
        ),
        ("  - landlock: {deny: [make-file], when: restart}\n", "the target was not started again"),
    ] {
        let run = run(&target, method);
        let Verdict::Inconclusive { why: shown } = run.verdict() else { panic!("{}", run.printed) };
        assert!(shown.contains(why), "`{why}` is not in `{shown}`");
    }
}

/// The trainer can't write to a directory of its own that is read-only, with a policy and without one.
fn a_mode_that_denies_is_no_evidence() {
    let start = steps_with_denied_writes();
    let target = SmallTarget { program: "/bin/sh", start, stall: LONG_STALL, more: "" };
    let user = OrdinaryUser::with_programs(&[TRAINWRECK.as_ref()]);
    let scenario = "version: 1\nid: fs-01\ntitle: a policy under test\nseverity: extra\ntarget: {use: target.yaml}\n\
                    method:\n  - landlock: {deny: [make-file]}\nexpect:\n  - always: {outcome: [recovered]}\n";
    std::fs::write(user.path("target.yaml"), target.to_yaml()).unwrap();
    std::fs::write(user.path("scenario.yaml"), scenario).unwrap();
    let output = user.command("trainwreck").args(["run", "scenario.yaml"]).output().unwrap();
    let printed = output_text(&output);
    assert!(printed.contains("no call below the root failed because of it"), "{printed}");
    assert_eq!(output.status.code(), Some(3), "{printed}");
}

/// A trainer that saves nothing but at its end.
fn steps_with_denied_writes() -> &'static str {
    "['{program}', -c, 'cd $1/ckpt; mkdir -m 500 -p kept; i=0; while [ $i -lt 9 ]; do sleep 0.05; i=$((i+1)); \
     echo step $i; (: >kept/$i) 2>/dev/null; done; echo saved step 0; echo finished with 9', sh, '{root}']"
}
