//! Machines that lack what sandboxes and the gate are made of, as containers do, for root and for an ordinary
//! user: what cannot run is skipped with the reason, nothing is called a success, and nothing fails or
//! touches the user's files.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::support::c_target;
use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::ordinary_user::{NOBODY, OrdinaryUser};
use crate::support::small_target::{LONG_STALL, SmallTarget};
use crate::support::user_tree::{TreeOwner, UserTree};

pub(crate) fn trials() -> Vec<Trial> {
    let needs = || SANDBOX.iter().chain(&GATE);
    let mut trials = trials![
        missing(needs());
        without_denial_everything_runs,
        without_user_namespaces_everything_is_skipped,
        without_mounts_everything_is_skipped,
        without_seccomp_only_what_needs_the_gate_is_skipped,
        without_notifications_only_what_needs_the_gate_is_skipped,
        without_both_everything_is_skipped,
        without_network_namespaces_nothing_fails,
    ];
    trials.extend(trials![
        missing(needs().chain(&[Need::OrdinaryUserWith("syscall-gate")]));
        for_an_ordinary_user_without_denial_everything_runs,
        for_an_ordinary_user_without_user_namespaces_everything_is_skipped,
        for_an_ordinary_user_without_seccomp_only_what_needs_the_gate_is_skipped,
    ]);
    trials.extend(trials![
        missing(&[Need::Root, Need::Mechanism("fuse"), Need::Program("unshare")]).or_else(no_device_nodes);
        a_device_that_only_root_may_open_is_used_although_the_target_does_not_see_it,
    ]);
    trials
}

/// A guard that can be removed.
const GUARD: &str = "setting-args: ['{value}']\nguards: {resumes: {style: forgets}}";

const SCENARIO: &str = r"
version: 1
id: ID
title: a stub under test
severity: extra
target: {use: stub}
method: [METHOD]
guards: [resumes]
expect:
  - always: {outcome: [recovered]}
";

/// Soon after the first save, so that it comes before the end on a busy machine too.
const NEEDS_A_SANDBOX: &str = "crash: {when: {step: 4}}";
const NEEDS_THE_GATE: &str = "crash: {when: {call: {during: checkpoint-save, at: 1}}}";

/// What a machine with a denial can still do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Able {
    Everything,
    /// All but intercept calls.
    Sandboxes,
    Nothing,
}

/// A machine on which `targets/deny.c` denies something to the command.
struct Machine {
    denied: &'static str,
    files: OrdinaryUser,
    tree: UserTree,
    is_ordinary: bool,
}

impl Machine {
    fn new(denied: &'static str, is_ordinary: bool) -> Machine {
        let deny = c_target::compile("deny.c", &[]).unwrap();
        let stub = workspace().join("harness/tests/targets/stub.sh");
        let files = OrdinaryUser::with_programs(&[TRAINWRECK.as_ref(), &deny, &stub]);
        let start = r#"[sh, -c, 'exec "$0" "${2:-sound}" "$1"', '{program}', '{root}', '{settings}']"#;
        let program = files.path("stub.sh");
        let program = program.to_str().unwrap();
        let target = SmallTarget { program, start, stall: LONG_STALL, more: GUARD }.to_yaml();
        std::fs::create_dir(files.path("scenarios")).unwrap();
        for dir in [files.path("scenarios"), files.path("")] {
            std::fs::write(dir.join("stub"), &target).unwrap();
        }
        for (name, method) in [("plain", NEEDS_A_SANDBOX), ("gated", NEEDS_THE_GATE)] {
            let id = format!("{name}-01");
            let text = SCENARIO.replace("ID", &id).replace("METHOD", method);
            std::fs::write(files.path(&format!("scenarios/{name}.yaml")), text).unwrap();
        }
        let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
        let tree = UserTree::create_in(Path::new("/var/tmp"), is_ordinary.then_some(owner));
        Machine { denied, files, tree, is_ordinary }
    }

    /// Runs the command in the user's project, and checks that it neither fails nor touches anything.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = match self.is_ordinary {
            true => self.files.command("deny"),
            false => Command::new(self.files.path("deny")),
        };
        let program = if self.is_ordinary { self.files.path("trainwreck") } else { TRAINWRECK.into() };
        let before = self.tree.snapshot();
        command.arg(self.denied).arg(program).args(arguments);
        command.current_dir(self.tree.project()).env("HOME", self.tree.home()).env_remove("XDG_STATE_HOME");
        let output = command.output().unwrap();
        let text =
            format!("without {}: {arguments:?}: {}\n{}", self.denied, output.status, output_text(&output));
        let differences = before.differences(&self.tree.snapshot());
        assert!(differences.is_empty(), "{differences:#?}\n{text}");
        let code = output.status.code().unwrap_or_else(|| panic!("{text}"));
        assert!(!matches!(code, 4 | 5 | 101), "{text}");
        (code, text)
    }

    /// Runs each verb, and checks the exit code against what the machine is able to do.
    fn check(&self, able: Able) {
        let file = |name: &str| self.files.path(&format!("scenarios/{name}")).display().to_string();
        let (plain, gated, both) = (file("plain.yaml"), file("gated.yaml"), file(""));
        let (has_sandboxes, has_gate) = (able != Able::Nothing, able == Able::Everything);
        let code = |is_able: bool| if is_able { 0 } else { 3 };
        let explore = [
            "explore",
            "--watch",
            "runs",
            "--crash",
            "process",
            "--max-states",
            "5",
            "--saved",
            r"^saved step (?<step>\d+)",
            "--resumed",
            r"^resumed from step (?<step>\d+)",
            "--",
            &self.files.path("stub.sh").display().to_string(),
            "sound",
            "runs",
        ]
        .map(str::to_owned);
        let explore: Vec<&str> = explore.iter().map(String::as_str).collect();
        for (arguments, expected, skipped) in [
            (&["run", &plain][..], code(has_sandboxes), !has_sandboxes),
            (&["run", &gated], code(has_gate), !has_gate),
            // Given by name, so that one skip is too many.
            (&["run", &plain, &gated], code(has_gate), !has_gate),
            // Not given by name: enough is left, unless all must run.
            (&["run", &both], code(has_sandboxes), !has_gate),
            (&["run", &both, "--require", "all"], code(has_gate), !has_gate),
            (&["ablate", &plain], code(has_sandboxes), !has_sandboxes),
            (&["ablate", &gated], code(has_gate), !has_gate),
            (&explore, code(has_gate), !has_gate),
        ] {
            let (code, text) = self.run(arguments);
            assert_eq!(code, expected, "{text}");
            assert!(!skipped || is_skipped_with_the_reason(&text), "{text}");
        }
    }
}

/// Whether the output says that something was skipped, and names what is missing.
fn is_skipped_with_the_reason(text: &str) -> bool {
    let reasons = ["user-namespace", "user namespace", "syscall-gate", "seccomp", "mount"];
    text.contains("skipped") && reasons.iter().any(|reason| text.contains(reason))
}

fn without_denial_everything_runs() {
    Machine::new("nothing", false).check(Able::Everything);
}

fn without_user_namespaces_everything_is_skipped() {
    let machine = Machine::new("namespaces", false);
    machine.check(Able::Nothing);
    // Shipped scenarios, by their IDs and all of them.
    for arguments in [&["run", "fs-01", "data-01"][..], &["run"], &["ablate", "fs-01"]] {
        let (code, text) = machine.run(arguments);
        assert!(code == 3 && is_skipped_with_the_reason(&text), "{text}");
    }
}

/// As where AppArmor lets unprivileged user namespaces be made, but gives them no rights.
fn without_mounts_everything_is_skipped() {
    Machine::new("mounts", false).check(Able::Nothing);
}

fn without_seccomp_only_what_needs_the_gate_is_skipped() {
    Machine::new("seccomp", false).check(Able::Sandboxes);
}

fn without_notifications_only_what_needs_the_gate_is_skipped() {
    Machine::new("notify", false).check(Able::Sandboxes);
}

fn without_both_everything_is_skipped() {
    Machine::new("both", false).check(Able::Nothing);
}

/// Whether something can run then is not said here, but the command itself works.
fn without_network_namespaces_nothing_fails() {
    let machine = Machine::new("network", false);
    let scenarios = machine.files.path("scenarios").display().to_string();
    for verb in ["run", "ablate"] {
        let (code, text) = machine.run(&[verb, &scenarios]);
        assert!(code == 0 || (code == 3 && text.contains("skipped")), "{text}");
    }
}

fn for_an_ordinary_user_without_denial_everything_runs() {
    Machine::new("nothing", true).check(Able::Everything);
}

fn for_an_ordinary_user_without_user_namespaces_everything_is_skipped() {
    Machine::new("namespaces", true).check(Able::Nothing);
}

fn for_an_ordinary_user_without_seccomp_only_what_needs_the_gate_is_skipped() {
    Machine::new("seccomp", true).check(Able::Sandboxes);
}

/// Why a device node of its own is of no use on this machine, if so.
fn no_device_nodes() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let null = dir.path().join("null");
    let made = Command::new("mknod").arg(&null).args(["c", "1", "3"]).output();
    let is_usable = made.is_ok_and(|made| made.status.success()) && std::fs::read(null).is_ok();
    (!is_usable).then(|| "no device nodes in the directory for temporary files".into())
}

/// Some hosts give `/dev/fuse` to root only. Covered for the target, it was covered for the harness too.
fn a_device_that_only_root_may_open_is_used_although_the_target_does_not_see_it() {
    for mode in ["600", "666"] {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("fuse");
        let script = "mknod -m \"$1\" \"$0\" c 10 229 && mount --bind \"$0\" /dev/fuse && exec \"$2\" doctor";
        let mut doctor = Command::new("unshare");
        doctor.args(["--mount", "sh", "-c", script]).arg(node).args([mode, TRAINWRECK]);
        let text = output_text(&doctor.output().unwrap());
        let line = text.lines().find(|line| line.contains("fuse ")).unwrap_or(&text);
        assert!(line.contains("file systems that ignore case"), "mode {mode}: {text}");
    }
}
