//! The files of a user stay as they are, whatever the target does and however the command ends: contents,
//! names, modes, owners, links, attributes, mtime and ctime are compared around random invocations of every
//! command. Nothing else of a run remains either: no process, directory, mount or cgroup.
//!
//! By hand, with more invocations, every fifth of which is killed with SIGKILL, and with another seed:
//! `TRAINWRECK_INVOCATIONS=50 TRAINWRECK_SEED=7 cargo test --test end_to_end -- user_files::`

mod invocation;
mod stage;

use std::path::Path;
use std::process::Command;

use invocation::{Invocation, PYTHON_HABITS, SHELL_HABITS, Verb};
use libtest_mimic::Trial;
use stage::{Runner, Stage};

use crate::support::command::TRAINWRECK;
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::ordinary_user::NOBODY;
use crate::support::user_tree::{TreeOwner, UserTree};

/// Owner and group of a project that a group shares.
const OTHER_USER: u32 = 61_234;
const SHARED_GROUP: u32 = 61_235;

pub(crate) fn trials() -> Vec<Trial> {
    let needs = || SANDBOX.iter().chain(&GATE).chain(&[Need::Program("python3")]);
    let mut trials = trials![
        missing(&[Need::Program("python3")]);
        every_careless_habit_harms_a_project_that_nothing_protects,
    ];
    trials.extend(trials![
        missing(needs());
        a_target_without_bad_habits_is_judged_in_the_project,
        a_project_in_a_home_stays_as_it_is,
        a_project_below_tmp_stays_as_it_is,
        nothing_leads_a_target_out_of_its_view_of_the_host,
    ]);
    let ordinary = [Need::OrdinaryUserWith("syscall-gate"), Need::Program("setpriv")];
    trials.extend(trials![
        missing(needs().chain(&ordinary));
        a_target_without_bad_habits_is_judged_for_an_ordinary_user,
        a_target_without_bad_habits_is_judged_for_a_member_of_a_group,
        a_project_of_an_ordinary_user_stays_as_it_is,
        a_project_that_a_group_shares_stays_as_it_is,
    ]);
    trials
}

/// Without this, the other tests would show nothing.
fn every_careless_habit_harms_a_project_that_nothing_protects() {
    // A process that stays cannot be seen in the files of this moment.
    let shell = SHELL_HABITS.iter().filter(|habit| !matches!(**habit, "daemon" | "temporary"));
    let habits = shell.map(|habit| ("sh", *habit)).chain(PYTHON_HABITS.map(|habit| ("py", habit)));
    for (language, habit) in habits.chain([("sh", "none"), ("py", "none")]) {
        // Only root may give a file away.
        if habit == "owners" && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let tree = UserTree::create_in(Path::new("/var/tmp"), None);
        let before = tree.snapshot();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/targets/careless.{language}"));
        let mut command = Command::new(if language == "sh" { "sh" } else { "python3" });
        command.arg(script).arg(habit).current_dir(tree.project()).env("HOME", tree.home());
        assert!(command.output().unwrap().status.success(), "{habit}");
        let harmed = before.differences(&tree.snapshot());
        // Each trainer removes the user's own checkpoints.
        let own_harm = |line: &&String| !line.contains("/runs/checkpoint-") && !line.contains("/runs: ");
        let is_harmed = match habit {
            "none" => harmed.iter().any(|line| line.contains("removed: ") && line.contains("checkpoint-10")),
            "mapping" | "wipe" => harmed.len() > 3,
            _ => harmed.iter().filter(own_harm).any(|line| !line.ends_with("runs/latest")),
        };
        assert!(is_harmed, "{language} {habit}: {harmed:#?}");
    }
}

/// Without this, an invocation that always failed would pass as well: the target can write where it could
/// write without a sandbox, and the result is that of a sandbox of its own.
fn check_without_habits(stage: &Stage) {
    let before = stage.tree.snapshot();
    let verbs = [
        (Verb::Run, "sh"),
        (Verb::RunAtCalls, "sh"),
        (Verb::ExploreMissing, "sh"),
        (Verb::ExplorePower, "py"),
    ];
    for (number, (verb, language)) in (100..).zip(verbs) {
        let invocation = Invocation { number, verb, language, habits: "none".into(), end: None };
        let exit = stage.check(&invocation, &before);
        let output = std::fs::read_to_string(stage.file("output")).unwrap();
        let expected = match verb {
            Verb::Run => exit.code() == Some(0),
            // Nothing is written to the watched directory.
            Verb::ExploreMissing => exit.code() == Some(3),
            // Its saves are not safe in the middle.
            _ => matches!(exit.code(), Some(0 | 1)),
        };
        assert!(expected, "{invocation:?} as {:?}: {exit}\n{output}", stage.runner);
    }
}

fn a_target_without_bad_habits_is_judged_in_the_project() {
    let tree = UserTree::create_in(Path::new("/var/tmp"), None);
    check_without_habits(&Stage::new(tree, Runner::ThisUser, true));
    let tree = UserTree::create_in(Path::new("/tmp"), None);
    check_without_habits(&Stage::new(tree, Runner::ThisUser, false));
}

fn a_target_without_bad_habits_is_judged_for_an_ordinary_user() {
    let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    check_without_habits(&Stage::new(tree, Runner::Nobody, true));
}

fn a_target_without_bad_habits_is_judged_for_a_member_of_a_group() {
    let owner = TreeOwner { uid: OTHER_USER, gid: SHARED_GROUP, is_group_writable: true };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    check_without_habits(&Stage::new(tree, Runner::GroupMember, true));
}

fn a_project_in_a_home_stays_as_it_is() {
    let tree = UserTree::create_in(Path::new("/var/tmp"), None);
    Stage::new(tree, Runner::ThisUser, true).check_invocations(1);
}

fn a_project_below_tmp_stays_as_it_is() {
    let tree = UserTree::create_in(Path::new("/tmp"), None);
    Stage::new(tree, Runner::ThisUser, false).check_invocations(2);
}

fn a_project_of_an_ordinary_user_stays_as_it_is() {
    let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    Stage::new(tree, Runner::Nobody, true).check_invocations(3);
}

/// The files belong to another user. Their group, of which the user is a member, may write.
fn a_project_that_a_group_shares_stays_as_it_is() {
    let owner = TreeOwner { uid: OTHER_USER, gid: SHARED_GROUP, is_group_writable: true };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    Stage::new(tree, Runner::GroupMember, true).check_invocations(4);
}

/// A target that looks for ways to the user's files other than their paths: descriptors that the harness has
/// inherited, its standard error, and mounts that root could change.
const ESCAPING_TARGET: &str = r#"
echo "saved 1"
mkdir -p runs
echo new >runs/checkpoint
for fd in /proc/self/fd/* /proc/1/fd/*; do
    echo escaped 2>/dev/null >"$fd/escaped"
    rm -f "$fd/data/precious"
    case $(readlink "$fd") in */ci.log) echo escaped >"$fd" ;; esac
done 2>/dev/null
{ mount -o remount,bind,rw /; umount -l "$PWD"; umount -l /tmp; } 2>/dev/null
echo escaped >escaped
rm -f data/precious
for device in /dev/*; do [ -b "$device" ] && exit 9; done
exit 0
"#;

fn nothing_leads_a_target_out_of_its_view_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    for (name, text) in [("data/precious", "kept"), ("ci.log", "first\n"), ("t.sh", ESCAPING_TARGET)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let command = format!(
        "exec 9<.; exec {TRAINWRECK} explore --watch runs --jobs 1 --saved 'saved (?<step>[0-9]+)' \
         --check true -- sh t.sh >>ci.log 2>&1"
    );
    let status = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).status().unwrap();
    let log = std::fs::read_to_string(dir.path().join("ci.log")).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.starts_with("first\n"), "{log}");
    assert_eq!(std::fs::read_to_string(dir.path().join("data/precious")).unwrap(), "kept");
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    assert_eq!(names, ["ci.log", "data", "t.sh"]);
}
