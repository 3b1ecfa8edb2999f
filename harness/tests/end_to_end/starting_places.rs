//! The places and limits that the command is started with: a working directory that is gone, a TMPDIR that does
//! not exist, small limits, outputs that cannot be written. Each ends with its exit code and a word about what
//! to do, never with a signal, and never as if everything were well.

use std::process::Command;

use libtest_mimic::Trial;

use crate::support::command::{TRAINWRECK, output_text};
use crate::support::machine::{GATE, Need, missing};
use crate::support::trial::{name_in, trial};

/// A command line of a shell that starts the command as `$T`, its possible exit codes, and a part of what it
/// prints.
struct Start {
    name: &'static str,
    shell: &'static str,
    codes: &'static [i32],
    prints: &'static str,
}

const fn start(
    name: &'static str,
    shell: &'static str,
    codes: &'static [i32],
    prints: &'static str,
) -> Start {
    Start { name, shell, codes, prints }
}

const STARTS: [Start; 23] = [
    start(
        "removed",
        "mkdir gone; cd gone; rmdir ../gone; exec $T explore --watch runs -- true",
        &[2],
        "directory",
    ),
    start("removed_run", "mkdir gone; cd gone; rmdir ../gone; exec $T run fs-02", &[2], "working directory"),
    start("removed_list", "mkdir gone; cd gone; rmdir ../gone; exec $T list", &[0], "fs-02"),
    start("no_tmpdir", "TMPDIR=$PWD/none exec $T explore --watch runs -- true", &[2], "TMPDIR"),
    start("file_tmpdir", ": >file; TMPDIR=$PWD/file exec $T explore --watch runs -- true", &[2], "TMPDIR"),
    start("kernel_tmpdir", "TMPDIR=/proc exec $T explore --watch runs -- true", &[2], "TMPDIR"),
    start(
        "link_tmpdir",
        "ln -s none tmp; TMPDIR=$PWD/tmp exec $T explore --watch runs -- true",
        &[2],
        "TMPDIR",
    ),
    start("recover_no_tmpdir", "TMPDIR=$PWD/none exec $T recover", &[2], "none"),
    start("doctor_no_tmpdir", "TMPDIR=$PWD/none exec $T doctor", &[0], "user-namespace"),
    start("no_home", "unset HOME XDG_STATE_HOME; exec $T run fs-02", &[2], "--out"),
    start("relative_state", "unset HOME; XDG_STATE_HOME=here exec $T run fs-02", &[2], "--out"),
    start("kernel_state", "XDG_STATE_HOME=/proc exec $T run fs-02", &[2], "--out"),
    start("full_list", "exec $T list >/dev/full", &[4], "standard output"),
    start("full_help", "exec $T --help >/dev/full", &[4], "standard output"),
    start("full_schema", "exec $T schema target >/dev/full", &[4], "standard output"),
    start("full_doctor", "exec $T doctor >/dev/full", &[4], "standard output"),
    start("full_check", "exec $T check missing.yaml >/dev/full", &[2, 4], "missing.yaml"),
    start("closed_list", "exec $T list >&-", &[0, 4], ""),
    start("closed_errors", "exec $T list 2>&-", &[0], "fs-02"),
    start("all_closed", "exec $T list <&- >&- 2>&-", &[0, 4], ""),
    start("reader_gone", "{ $T list; echo code $? >&2; } | head -n 1", &[0], "code 0"),
    start("file_limit_list", "ulimit -f 0; exec $T list", &[0], "fs-02"),
    start("file_limit_to_file", "ulimit -f 1; $T schema scenario >file; exit $?", &[4], "standard output"),
];

/// Those that need a sandbox.
const RECORDED_STARTS: [Start; 6] = [
    start(
        "full_explore",
        "exec $T explore --watch runs -- sh -c 'echo x >runs/x' >/dev/full",
        &[4],
        "standard output",
    ),
    start(
        "file_limit_explore",
        "ulimit -f 0; exec $T explore --watch runs -- sh -c 'echo x >runs/x'",
        &[3, 4],
        "trainwreck",
    ),
    start(
        "descriptor_limit",
        "ulimit -n 12; exec $T explore --watch runs -- sh -c 'echo x >runs/x'",
        &[4],
        "`ulimit -n 80`",
    ),
    start(
        "descriptor_limit_of_jobs",
        "ulimit -n 100; exec $T explore --jobs 3 --watch runs -- sh -c 'echo x >runs/x'",
        &[4],
        "--jobs",
    ),
    start(
        "least_descriptors",
        "ulimit -n 100; exec $T explore --jobs 2 --check true --watch runs -- sh -c 'echo x >runs/x'",
        &[0],
        "states",
    ),
    start(
        "working_directory_root",
        "cd /; exec $T explore --watch runs-of-trainwreck --max-states 3 --check true -- \
     sh -c 'echo x >new && mv new runs-of-trainwreck/x && mkdir -p other && [ -f runs-of-trainwreck/x ]'",
        &[0, 1],
        "states",
    ),
];

/// Something is mounted beside the working directory, so that each directory there is private by itself. They vanish
/// one after the other while the command runs.
const VANISHING_DIRECTORIES: Start = start(
    "vanishing_directories",
    "mkdir mounted $(seq 100 160) && exec unshare -m sh -c 'mount -t tmpfs none mounted || exit 77
     (for dir in $(seq 100 160); do sleep 0.05; rmdir $dir; done) &
     exec $T explore --watch runs --max-states 60 --jobs 1 --check true -- sh -c \
        \"echo y >other; for i in 1 2 3 4 5 6 7 8 9; do echo x >runs/new && mv runs/new runs/x; done\"'",
    &[0],
    "states",
);

pub(crate) fn trials() -> Vec<Trial> {
    let plain = STARTS.iter().map(|start| trial_of(start, None));
    let recorded = missing(&GATE);
    let recorded = RECORDED_STARTS.iter().map(|start| trial_of(start, recorded.as_deref()));
    let needs = GATE.iter().chain(&[Need::Root, Need::Program("unshare")]);
    let vanishing = trial_of(&VANISHING_DIRECTORIES, missing(needs).as_deref());
    plain.chain(recorded).chain([vanishing]).collect()
}

fn trial_of(start: &'static Start, missing: Option<&str>) -> Trial {
    trial(name_in(module_path!(), start.name), missing, || check(start))
}

fn check(Start { name, shell, codes, prints }: &Start) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("runs")).unwrap();
    std::fs::create_dir(dir.path().join("temporary")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", shell]).current_dir(dir.path()).env("T", TRAINWRECK).env("HOME", dir.path());
    command.env("TMPDIR", dir.path().join("temporary")).env_remove("XDG_STATE_HOME").env_remove("CARGO");
    let output = command.output().unwrap();
    let text = output_text(&output);
    let is_expected = output.status.code().is_some_and(|code| codes.contains(&code));
    assert!(is_expected && text.contains(prints), "{name}: {}\n{text}", output.status);
    let left = std::fs::read_dir(dir.path().join("temporary")).unwrap().flatten();
    let left: Vec<_> = left.flat_map(|user| std::fs::read_dir(user.path()).unwrap().flatten()).collect();
    let left: Vec<_> = left.iter().filter(|entry| entry.file_name() != "lock").collect();
    assert!(left.is_empty(), "{name}: {left:?}\n{text}");
}
