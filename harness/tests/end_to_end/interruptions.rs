//! Runs that end early, and what they leave: signals at several moments of `run`, `ablate` and `explore`,
//! harnesses that start at the same moment, and leftovers of killed ones that are hard to remove.
//!
//! `cargo test --test end_to_end -- interruptions::`. Not covered: leftovers on read-only file systems.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use assert_cmd::assert::OutputAssertExt;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use scenarios::{Exploration, Record};

use crate::support::command::{TRAINWRECK, output_text, wait_for};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::program_files::{copy_program, write_script};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        hostile_leftovers_are_removed_or_named_and_what_they_link_to_stays,
        an_interrupted_build_by_cargo_ends_at_once_with_130,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_signal_at_any_moment_of_a_run_gives_130_and_whole_reports_and_leaves_nothing,
        a_second_signal_ends_the_command_at_once,
    ]);
    trials.extend(trials![
        missing(&GATE);
        a_signal_at_any_moment_of_an_exploration_gives_130_and_leaves_nothing,
        an_interrupted_search_for_second_crashes_counts_what_it_did_not_try,
        an_exploration_that_is_interrupted_in_its_first_recovery_has_tried_nothing,
        one_signal_ends_a_recording_that_runs_or_waits_for_processes,
        one_signal_ends_an_enumeration_of_millions_of_states,
        one_signal_ends_the_import_of_a_fork_server,
        one_signal_ends_the_repetition_of_a_state_that_hangs,
        a_recovery_that_hangs_while_it_is_recorded_is_counted,
        a_recording_whose_init_was_killed_ends,
    ]);
    trials.extend(trials![
        missing(&[Need::Mechanism("user-namespace")]);
        harnesses_that_start_at_the_same_moment_do_not_sweep_one_another,
    ]);
    trials
}

/// A directory for one run: its temporary files, its report, and a trainer's files.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Workplace {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "runs"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Workplace { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, as a terminal starts it: in a process group, to which Ctrl-C goes.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TRAINWRECK);
        command.args(args).current_dir(self.dir.path()).env("TMPDIR", self.path("tmp")).process_group(0);
        command.env("XDG_STATE_HOME", self.path("state"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Where the runs of this user are.
    fn runs_dir(&self) -> PathBuf {
        self.path("tmp").join(format!("trainwreck-{}", nix::unistd::geteuid()))
    }

    /// The directories of runs, dead ones too.
    fn left_runs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.runs_dir()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| !path.ends_with("lock")).collect()
    }

    /// Nothing of a run with this process ID is there any more.
    fn assert_nothing_left(&self, pid: u32, text: &str) {
        let runs_dir = self.runs_dir();
        wait_for("every process to end", || processes_with(runs_dir.to_str().unwrap()).is_empty());
        let left = self.left_runs();
        assert!(left.is_empty(), "{left:?}: {text}");
        let cgroups = cgroups_of(pid);
        assert!(cgroups.is_empty(), "{cgroups:?}");
    }
}

/// The processes whose command line contains this text.
fn processes_with(text: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let has = |path: &PathBuf| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
    };
    entries.filter(|path| !path.ends_with("self") && !path.ends_with("thread-self")).filter(has).collect()
}

/// The cgroups of a harness with this process ID, in both versions of the interface.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own: Vec<&str> = own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let mount_points = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"];
    let dirs = mount_points
        .iter()
        .flat_map(|mount| own.iter().map(move |path| Path::new(mount).join(path.trim_start_matches('/'))));
    let dirs = dirs.flat_map(|dir| [dir.parent().map(Path::to_path_buf).unwrap_or_default(), dir]);
    let entries = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let name = format!("trainwreck-{}-{pid}-", nix::unistd::geteuid());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(&name)).collect()
}

fn signal_group(child: &Child, signal: Signal) {
    killpg(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// The moments at which signals are sent: from before the first sandbox to within the trials.
const MOMENTS_MS: [u64; 6] = [1, 60, 250, 700, 1500, 3200];

fn a_signal_at_any_moment_of_a_run_gives_130_and_whole_reports_and_leaves_nothing() {
    for (nth, moment_ms) in MOMENTS_MS.into_iter().enumerate() {
        let signal = [Signal::SIGINT, Signal::SIGTERM][nth % 2];
        let verb = ["run", "ablate"][nth / 2 % 2];
        let workplace = Workplace::new();
        let child = workplace.start(&[verb, "fs-01", "fs-06", "dur-01", "--out", "out"]);
        // Before that, a signal has its usual effect.
        wait_for("the report's directory", || workplace.path("out").exists());
        std::thread::sleep(Duration::from_millis(moment_ms));
        signal_group(&child, signal);
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(130), "{verb} after {moment_ms} ms: {text}");
        assert!(text.contains("interrupted: "), "{text}");
        workplace.assert_nothing_left(pid, &text);
        if !workplace.path("out/record.jsonl").exists() {
            assert!(text.contains("interrupted before anything was judged"), "{text}");
            continue;
        }
        assert!(text.contains("of 3 scenarios") || verb == "ablate", "{text}");
        assert_reports_are_whole(&workplace.path("out"));
        let analyzed = workplace.command(&["analyze", "out"]).output().unwrap();
        let analyzed_text = output_text(&analyzed);
        assert!([1, 3].contains(&analyzed.status.code().unwrap()), "{analyzed_text}");
        assert!(!analyzed_text.contains("DIFFERS"), "{analyzed_text}");
    }
}

fn assert_reports_are_whole(out: &Path) {
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let record = Record::parse(&read("record.jsonl")).unwrap();
    assert!(!record.truncated && read("record.jsonl").contains("\"exit_code\":130"));
    assert!(read("report.html").trim_end().ends_with("</html>"));
    assert!(read("junit.xml").trim_end().ends_with("</testsuites>"));
    assert!(!read("summary.md").is_empty());
}

fn a_second_signal_ends_the_command_at_once() {
    let workplace = Workplace::new();
    let mut child = workplace.start(&["run", "fs-01", "--out", "out"]);
    wait_for("the report's directory", || workplace.path("out").exists());
    // Stopped, so that it cannot end between the two.
    signal_group(&child, Signal::SIGSTOP);
    signal_group(&child, Signal::SIGINT);
    signal_group(&child, Signal::SIGTERM);
    signal_group(&child, Signal::SIGCONT);
    let status = child.wait().unwrap();
    assert!(status.signal().is_some() || status.code() == Some(130), "{status:?}");
    let runs_dir = workplace.runs_dir();
    wait_for("every process to end", || processes_with(runs_dir.to_str().unwrap()).is_empty());
    workplace.command(&["recover"]).output().unwrap().assert().code(0);
    workplace.assert_nothing_left(child.id(), "");
}

/// A trainer that saves `saves` times. A recovery sleeps for `sleep_s`.
fn slow_trainer(saves: u32, sleep_s: &str) -> String {
    format!(
        "if [ -e runs/checkpoint ]; then echo mended > runs/mended; sleep {sleep_s}; fi; s=0; \
         while [ $s -lt {saves} ]; do s=$((s+1)); sleep 0.02; echo $s > runs/new; \
         mv runs/new runs/checkpoint; echo saved step $s; done"
    )
}

fn start_exploration(workplace: &Workplace, options: &[&str], trainer: &str) -> Child {
    let fixed = ["explore", "--watch", "runs", "--out", "out", "--json", "result.json", "--jobs", "2"];
    workplace.start(&[&fixed[..], options, &["--", "sh", "-c", trainer]].concat())
}

fn read_exploration(workplace: &Workplace) -> Exploration {
    Exploration::parse(&std::fs::read_to_string(workplace.path("result.json")).unwrap()).unwrap()
}

fn finish(workplace: &Workplace, child: Child) -> Output {
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    workplace.assert_nothing_left(pid, &output_text(&output));
    output
}

fn a_signal_at_any_moment_of_an_exploration_gives_130_and_leaves_nothing() {
    for (nth, moment_ms) in MOMENTS_MS.into_iter().enumerate() {
        let workplace = Workplace::new();
        let child = start_exploration(&workplace, &["--depth", "2"], &slow_trainer(20, "0.2"));
        wait_for("the report's directory", || workplace.path("out").exists());
        std::thread::sleep(Duration::from_millis(moment_ms));
        signal_group(&child, [Signal::SIGTERM, Signal::SIGINT][nth % 2]);
        let output = finish(&workplace, child);
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(130), "after {moment_ms} ms: {text}");
        assert!(std::fs::read_dir(workplace.path("runs")).unwrap().next().is_none());
        if workplace.path("result.json").exists() {
            let exploration = read_exploration(&workplace);
            assert!(exploration.untried > 0 && text.contains("states were not tried"), "{text}");
            let page = std::fs::read_to_string(workplace.path("out/explore.html")).unwrap();
            assert!(page.trim_end().ends_with("</html>"));
        } else {
            assert!(text.contains("interrupted before"), "{text}");
        }
    }
}

fn an_exploration_that_is_interrupted_in_its_first_recovery_has_tried_nothing() {
    let workplace = Workplace::new();
    let child = start_exploration(&workplace, &[], &slow_trainer(3, "58.5"));
    wait_for("a recovery", || is_sleeping("58.5"));
    signal_group(&child, Signal::SIGINT);
    let output = finish(&workplace, child);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    let exploration = read_exploration(&workplace);
    assert!(exploration.tried == 0 && exploration.untried > 0, "{text}");
    assert!(text.contains("interrupted: 0 of ") && !text.contains("no state was tried"), "{text}");
}

fn is_sleeping(sleep_s: &str) -> bool {
    !processes_with(&format!("sleep\0{sleep_s}\0")).is_empty()
}

fn an_interrupted_search_for_second_crashes_counts_what_it_did_not_try() {
    let workplace = Workplace::new();
    // Few states, all of which are tried before the first second crash.
    let child =
        start_exploration(&workplace, &["--depth", "2", "--crash", "process"], &slow_trainer(2, "0.35"));
    wait_for("the first second crash", || {
        let runs = workplace.left_runs();
        runs.iter().any(|run| run.join("second-1").exists())
    });
    signal_group(&child, Signal::SIGINT);
    let output = finish(&workplace, child);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    let exploration = read_exploration(&workplace);
    assert!(exploration.untried == 0 && exploration.untried_recoveries > 0, "{text}");
    let said = format!("and not in {} others", exploration.untried_recoveries);
    assert!(text.contains(&said), "{text}");
}

fn one_signal_ends_a_recording_that_runs_or_waits_for_processes() {
    for (sleep_s, rest) in [("52.25", ""), ("52.75", "& exit 0")] {
        let workplace = Workplace::new();
        let trainer = format!("echo 1 > runs/a; sleep {sleep_s} {rest}");
        let child = start_exploration(&workplace, &[], &trainer);
        wait_for("the recorded run", || is_sleeping(sleep_s));
        std::thread::sleep(Duration::from_millis(300));
        signal_group(&child, Signal::SIGINT);
        let output = finish(&workplace, child);
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(text.contains("interrupted before the states were known"), "{text}");
        assert!(!workplace.path("result.json").exists() && !is_sleeping(sleep_s), "{text}");
    }
}

/// Names that are not synced can be lost in very many ways.
fn one_signal_ends_an_enumeration_of_millions_of_states() {
    let workplace = Workplace::new();
    let trainer = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo $i > runs/a$i; echo $i > runs/b$i; \
                   mv runs/a$i runs/c$i; done";
    let args = ["explore", "--watch", "runs", "--json", "result.json", "--max-states", "all"];
    let printed = std::fs::File::create(workplace.path("printed")).unwrap();
    let mut command = workplace.command(&[&args[..], &["--", "sh", "-c", trainer]].concat());
    let child = command.stdout(printed).spawn().unwrap();
    let read_printed = || std::fs::read_to_string(workplace.path("printed")).unwrap();
    wait_for("the end of the recording", || read_printed().contains("file operations"));
    std::thread::sleep(Duration::from_millis(300));
    signal_group(&child, Signal::SIGINT);
    let output = finish(&workplace, child);
    let text = read_printed();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted before the states were known"), "{text}");
}

fn one_signal_ends_the_import_of_a_fork_server() {
    let workplace = Workplace::new();
    std::fs::write(workplace.path("slow.py"), "import subprocess\nsubprocess.run(['sleep', '55.75'])\n")
        .unwrap();
    std::fs::write(workplace.path("train.py"), "open('runs/a', 'w').write('x')\n").unwrap();
    let fixed = ["explore", "--watch", "runs", "--warm", "slow", "--jobs", "1"];
    let mut command = workplace.command(&[&fixed[..], &["--", "python3", "train.py"]].concat());
    let child = command.env("PYTHONPATH", workplace.dir.path()).spawn().unwrap();
    wait_for("the import", || is_sleeping("55.75"));
    signal_group(&child, Signal::SIGTERM);
    let output = finish(&workplace, child);
    assert_eq!(output.status.code(), Some(130), "{}", output_text(&output));
}

/// A finding that hangs is tried once more at the end, with three times the limit.
fn one_signal_ends_the_repetition_of_a_state_that_hangs() {
    let workplace = Workplace::new();
    let trainer = "[ -e runs/a ] && ! [ -e runs/b ] && sleep 54.5; : > runs/a; : > runs/b";
    let options = ["--timeout", "2s", "--crash", "process"];
    let child = start_exploration(&workplace, &options, trainer);
    let sleeping = || processes_with("sleep\u{0}54.5\u{0}");
    wait_for("the recovery", || !sleeping().is_empty());
    let first = sleeping();
    wait_for("its repetition", || sleeping().iter().any(|process| !first.contains(process)));
    signal_group(&child, Signal::SIGINT);
    let output = finish(&workplace, child);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    let findings = read_exploration(&workplace).findings;
    assert!(findings.len() == 1 && findings[0].confirmation.is_none(), "{text}");
}

/// It ends when it is tried, and not when it is recorded: it sees that it is traced by the gate.
fn a_recovery_that_hangs_while_it_is_recorded_is_counted() {
    let workplace = Workplace::new();
    let trainer = "if [ -e runs/a ] && ! grep -q 'Seccomp_filters:.[01]$' /proc/self/status; then sleep 53; fi; \
                   : > runs/a; echo x > runs/b; echo done";
    let options = ["--depth", "2", "--timeout", "1s", "--crash", "process", "--same", "^(done)"];
    let child = start_exploration(&workplace, &options, trainer);
    let output = finish(&workplace, child);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    let exploration = read_exploration(&workplace);
    // From the files before the first operation it starts anew, and does not hang.
    assert_eq!((exploration.unrecorded_recoveries, exploration.second.len()), (3, 1), "{text}");
    assert!(text.contains("second crashes were not tried in"), "{text}");
}

/// The kernel may kill it when memory runs out.
fn a_recording_whose_init_was_killed_ends() {
    let workplace = Workplace::new();
    let child = start_exploration(&workplace, &[], "touch runs/a; sleep 57.25");
    wait_for("the trainer", || is_sleeping("57.25"));
    let trainer = processes_with("sleep\u{0}57.25\u{0}");
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/pid")).ok();
    let of_trainer = namespace(&trainer[0]);
    let status_of = |process: &Path| std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let is_init = |process: &&PathBuf| {
        let status = status_of(process);
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        namespace(process) == of_trainer
            && pids.is_some_and(|pids| pids.split_whitespace().last() == Some("1"))
    };
    let processes: Vec<PathBuf> =
        std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).collect();
    let init = processes.iter().find(is_init).unwrap();
    let pid = init.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let output = finish(&workplace, child);
    assert_eq!(output.status.code(), Some(4), "{}", output_text(&output));
}

/// A cargo that never ends stands for one that builds for minutes.
fn an_interrupted_build_by_cargo_ends_at_once_with_130() {
    let workplace = Workplace::new();
    let cargo = workplace.path("cargo");
    write_script(&cargo, "#!/bin/sh\nsleep 56.25 & wait\n", 0o755);
    // Beside a copy of the command there is no trainer yet, so that it would be built.
    let copy = workplace.path("bin/trainwreck");
    std::fs::create_dir(workplace.path("bin")).unwrap();
    copy_program(TRAINWRECK.as_ref(), &copy);
    for to_group in [true, false] {
        let mut command = Command::new(&copy);
        command.args(["run", "fs-02", "--out", "out"]).current_dir(workplace.dir.path()).process_group(0);
        command.env("TMPDIR", workplace.path("tmp")).env("CARGO", &cargo);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("cargo", || is_sleeping("56.25"));
        match to_group {
            true => signal_group(&child, Signal::SIGINT),
            false => kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap(),
        }
        let output = finish(&workplace, child);
        assert_eq!(output.status.code(), Some(130), "{}", output_text(&output));
        wait_for("cargo's end", || !is_sleeping("56.25"));
        assert!(!workplace.path("out").exists());
    }
}

/// Abandoned runs, as `kill -9` leaves them, with what targets may leave in them.
fn make_leftovers(workplace: &Workplace, count: u32) {
    for number in 0..count {
        let run = workplace.runs_dir().join(format!("run-{}-{number}", 4_000_000 + number));
        std::fs::create_dir_all(run.join("trial/sandbox/root/locked/inner")).unwrap();
        std::fs::write(run.join("owner"), "").unwrap();
        std::fs::write(run.join("trial/sandbox/root/locked/inner/file"), "x").unwrap();
        let root = run.join("trial/sandbox/root");
        std::os::unix::fs::symlink(workplace.path("users"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("/", root.join("locked/root")).unwrap();
        for locked in ["locked/inner", "locked"] {
            std::fs::set_permissions(root.join(locked), std::fs::Permissions::from_mode(0o000)).unwrap();
        }
    }
    std::fs::set_permissions(workplace.runs_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn hostile_leftovers_are_removed_or_named_and_what_they_link_to_stays() {
    let workplace = Workplace::new();
    std::fs::create_dir(workplace.path("users")).unwrap();
    std::fs::write(workplace.path("users/step-9"), "precious").unwrap();
    make_leftovers(&workplace, 3);
    let runs = workplace.runs_dir();
    let immutable = runs.join("run-4000001-1/trial/file");
    std::fs::write(&immutable, "x").unwrap();
    let is_immutable =
        Command::new("chattr").arg("+i").arg(&immutable).status().is_ok_and(|status| status.success());
    // A link in the place of a run is nobody's run.
    std::os::unix::fs::symlink(workplace.path("users"), runs.join("run-1-0")).unwrap();
    let recovered = workplace.command(&["recover"]).output().unwrap();
    let text = output_text(&recovered);
    assert_eq!(recovered.status.code(), Some(if is_immutable { 5 } else { 0 }), "{text}");
    assert_eq!(std::fs::read_to_string(workplace.path("users/step-9")).unwrap(), "precious");
    if is_immutable {
        assert!(text.contains("dead-4000001-1") && text.contains("chattr -R -i"), "{text}");
        // It blocks no start.
        let run = workplace.command(&["run", "fs-02", "--out", "out"]).output().unwrap();
        assert_ne!(run.status.code(), Some(5), "{}", output_text(&run));
        assert!(output_text(&run).contains("chattr -R -i"), "{}", output_text(&run));
        let left = runs.join("dead-4000001-1/trial/file");
        Command::new("chattr").arg("-i").arg(&left).status().unwrap();
        workplace.command(&["recover"]).output().unwrap().assert().code(0);
    }
    assert_eq!(workplace.left_runs(), [runs.join("run-1-0")]);
}

fn harnesses_that_start_at_the_same_moment_do_not_sweep_one_another() {
    for _ in 0..3 {
        let workplace = Workplace::new();
        make_leftovers(&workplace, 8);
        let start = |number: usize| match number % 2 {
            // Both look for leftovers first. One has a directory of its own, the other has none.
            0 => workplace.start(&["explore", "--watch", "runs", "--", "true"]),
            _ => workplace.start(&["recover"]),
        };
        let children: Vec<Child> = (0..16).map(start).collect();
        for (number, child) in children.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            let text = output_text(&output);
            // The exploration records nothing, which is 3. A harness that was swept away is 4.
            assert_eq!(output.status.code(), Some([3, 0][number % 2]), "{text}");
        }
        let left = workplace.left_runs();
        assert!(left.is_empty(), "{left:?}");
    }
}
