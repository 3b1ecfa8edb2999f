//! A trial counts only if each fault of its method was effective: evidence comes from what was done, faults share
//! nothing, and what is missing is said with its reason.

use Expected::{Inconclusive, Survived};
use libtest_mimic::Trial;
use scenarios::Verdict;

use crate::support::command::workspace;
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};
use crate::support::small_target::{LONG_STALL, SmallTarget};

/// What a scenario must come to.
enum Expected {
    /// It survives, and the first trial has this evidence: a part of each fault's, in the order of the effects.
    Survived(&'static [&'static str]),
    /// It is inconclusive, and each of these is said.
    Inconclusive(&'static [&'static str]),
}

/// Methods against a sound trainer of 12 steps, which saves each third one with a `write` and `mv`.
const METHODS: [(&str, Expected); 49] = [
    (
        "crash: {when: {step: 4}}; fail-call: {errno: [EIO], when: {call: {to: [rename], on: 'never/**', at: 1}}}",
        Inconclusive(&["fault 2, fail-call", "the target made 0 matching calls", "waits for call 1"]),
    ),
    (
        "crash: {when: {step: 4}}; \
         fail-call: {errno: [EIO], optional: true, when: {call: {to: [rename], on: 'never/**', at: 1}}}",
        Survived(&["every process was killed"]),
    ),
    (
        "crash: {when: {step: 4}}; damage-files: {files: 'ckpt/latest', how: [age], when: restart}",
        Survived(&["every process was killed", "`ckpt/latest`: dated to 2001"]),
    ),
    (
        "damage-files: {files: 'ckpt/latest', how: [age], when: restart}",
        Inconclusive(&["fault 1, damage-files", "the target was not started again"]),
    ),
    (
        "damage-files: {files: 'never/**', how: [remove], when: {step: 4}}",
        Inconclusive(&["fault 1, damage-files", "no file matched"]),
    ),
    (
        "damage-files: {of: 'ckpt/lat*', newest: every, how: [flip], when: {step: 4}}",
        Inconclusive(&["there was no trial: `newest: every` spares one, and the baseline run left 1"]),
    ),
    (
        "damage-files: {of: 'ckpt/lat*', how: [mix], when: {step: 4}}",
        Inconclusive(&["fault 1, damage-files", "nothing changed in 1 files: `ckpt/latest` is as before"]),
    ),
    (
        "flip-memory: {file: 'never/**', when: {step: 4}}",
        Inconclusive(&["fault 1, flip-memory", "no file matched"]),
    ),
    (
        "flip-memory: {file: 'ckpt/latest', when: {step: 4}}",
        Inconclusive(&["fault 1, flip-memory", "`ckpt/latest` has no 64 bytes that can be told from others"]),
    ),
    (
        "proc-file: {path: /proc/meminfo, holds: 'x'}; proc-file: {path: /proc/meminfo, holds: 'y', when: {step: 3}}; \
         run-command: {command: [sh, -c, 'test $(cat /proc/meminfo) = y'], when: {step: 4}}",
        Inconclusive(&["fault 1, proc-file: no process has read the text in `/proc/meminfo`"]),
    ),
    (
        "proc-file: {path: /proc/meminfo, holds: 'x', when: {step: 3}}; \
         run-command: {command: [sh, -c, 'test $(cat /proc/meminfo) = x'], when: {step: 4}}",
        Survived(&["the text in `/proc/meminfo` was read", "1 command ran and ended: exit code 0"]),
    ),
    (
        "proc-file: {path: /proc/nothing-here, holds: 'x'}",
        Inconclusive(&["fault 1, proc-file: `/proc/nothing-here`: this machine has no such file"]),
    ),
    (
        "proc-file: {path: /proc/fs, holds: 'x'}",
        Inconclusive(&["fault 1, proc-file: `/proc/fs`: it is no regular file"]),
    ),
    ("crash: {optional: true, when: {step: 400}}", Inconclusive(&["all its faults are optional"])),
    (
        "delay-call: {time: 1 ms, when: {call: {to: [rename], at: 1}}}; \
         crash: {when: {call: {during: checkpoint-save, to: [rename], at: 1}}}",
        Survived(&["rename(ckpt/temporary -> ckpt/latest), call 1: takes 1ms", "in checkpoint-save 3"]),
    ),
    (
        "delay-call: {time: 1 ms, when: {call: {to: [rename], at: 1}}}; \
         crash: {when: {call: {during: checkpoint-save, to: [rename], at: 3}}}",
        // `mv` tries not to replace a file first.
        Inconclusive(&["fault 2, crash", "made 2 matching calls", "waits for call 3 of checkpoint-save 3"]),
    ),
    (
        "crash: {when: {call: {during: checkpoint-save, to: [rename], at: 300}}}",
        Inconclusive(&["there was no trial: fault 1, crash", "made 2 matching calls", "waits for call 300"]),
    ),
    (
        "fail-call: {errno: [EIO], when: {call: {to: [rename], on: 'never/**', at: every}}}",
        Inconclusive(&["there was no trial: fault 1, fail-call", "made 0 matching calls in the whole run"]),
    ),
    // Two faults of one kind, counted each for itself: the second one counts the call that the first one took.
    (
        "delay-call: {time: 1 ms, when: {call: {to: [rename], at: 1}}}; \
         delay-call: {time: 2 ms, when: {call: {to: [rename], at: 2}}}",
        Survived(&["call 1: takes 1ms", "call 2: takes 2ms"]),
    ),
    (
        "delay-call: {time: 1 ms, when: {call: {to: [rename], at: 1}}}; \
         delay-call: {time: 2 ms, when: {call: {to: [rename], at: 1}}}",
        Inconclusive(&["fault 2, delay-call: fault 1 took the call for which it waited"]),
    ),
    // The rest of a short write is the next write.
    (
        "short-call: {bytes: 1, when: {call: {to: [write], on: 'ckpt/temporary', at: 1}}}; \
         delay-call: {time: 1 ms, when: {call: {to: [write], on: 'ckpt/temporary', at: 2}}}",
        Survived(&["moved only 1 bytes", "call 2: takes 1ms"]),
    ),
    // As many bytes as the call asks for are no short call.
    (
        "short-call: {bytes: 700, when: {call: {to: [write], on: 'ckpt/temporary', at: 1}}}",
        Inconclusive(&["fault 1, short-call", "as without a fault"]),
    ),
    (
        "crash: {when: {step: 3000}}",
        Inconclusive(&["fault 1, crash: the run ended at step 12; the fault waits for step 3000"]),
    ),
    ("crash: {when: {output: 'never printed'}}", Inconclusive(&["no line that matches `never printed`"])),
    ("crash: {when: {after: 1000 s}}", Inconclusive(&["the run ended before 1000s"])),
    (
        "signal: {which: [TERM], to: group, again-after: 60 s, for: 90 s, when: {step: 4}}",
        Inconclusive(&["fault 1, signal: the target had exited before the second signal"]),
    ),
    (
        "signal: {which: [HUP], to: group, again-after: 60 s, for: 90 s, when: {step: 4}}",
        Survived(&["sent SIGHUP to the process group after step 4, which has ended it at once"]),
    ),
    (
        "environment: {set: {CHANGED: 'so'}, unset: [LANG], stderr: closed}; \
         run-command: {command: [sh, -c, 'test $CHANGED = so && test -z $LANG'], when: {step: 4}}",
        Survived(&[
            "was started with: CHANGED=so, no LANG, standard error closed",
            "1 command ran and ended: exit code 0",
        ]),
    ),
    // What a target has anyway is no fault.
    (
        "environment: {set: {CHANGED: 'so'}, unset: [NOBODY_HAS_THIS]}",
        Inconclusive(&[
            "fault 1, environment: the target has this without the fault, too: no NOBODY_HAS_THIS",
        ]),
    ),
    (
        "environment: {umask: ['077'], when: restart}",
        Inconclusive(&["fault 1, environment: the target was not started again"]),
    ),
    (
        "run-command: {command: [sleep, '1000'], when: {step: 4}}",
        Inconclusive(&["fault 1, run-command: not ended by itself: 1 command"]),
    ),
    // A command that fails has done nothing, unless the scenario says how it ends.
    (
        "run-command: {command: [sh, -c, 'nosuchprogram --now'], when: {step: 4}}",
        Inconclusive(&["fault 1, run-command: a command ended with exit code 127", "nosuchprogram"]),
    ),
    (
        "run-command: {command: [sh, -c, 'kill -9 $$'], when: {step: 4}}",
        Inconclusive(&["fault 1, run-command: a command ended with", "9"]),
    ),
    (
        "run-command: {copies: 3, command: [sh, -c, 'test {copy} = 2 || exit 1'], when: {step: 4}}",
        Inconclusive(&["fault 1, run-command: a command ended with exit code 1"]),
    ),
    (
        "run-command: {command: [nosuchprogram], when: {step: 4}}",
        Inconclusive(&["fault 1, run-command: could not start `nosuchprogram`"]),
    ),
    (
        "signal: {which: [TERM], to: main, for: 60 s, when: {step: 3000}}",
        Inconclusive(&["fault 1, signal: the run ended at step 12"]),
    ),
    // What the scenario names as the evidence replaces every other.
    (
        "crash: {when: {step: 4}, effective-if: {output: 'resumed from step 3'}}",
        Survived(&["the target printed: resumed from step 3"]),
    ),
    (
        "crash: {when: {step: 4}, effective-if: {output: 'never printed'}}",
        Inconclusive(&["fault 1, crash: the target printed no line that matches `never printed`"]),
    ),
    (
        "delay-call: {time: 1 ms, effective-if: {output: 'saved step 3'}, when: {call: {to: [rename], at: 1}}}",
        Survived(&["the target printed: saved step 3"]),
    ),
    (
        "delay-call: {time: 1 ms, effective-if: {output: 'never printed'}, when: {call: {to: [rename], at: 1}}}",
        Inconclusive(&["fault 1, delay-call: the target printed no line that matches `never printed`"]),
    ),
    ("bound-port: {port: 6006}", Survived(&["port 6006 is taken"])),
    (
        "bound-port: {port: 6006}; bound-port: {port: 6006}",
        Inconclusive(&["fault 2, bound-port", "port 6006 was taken already"]),
    ),
    (
        "bound-port: {port: 6006}; http-request: {port: 6006, idle: true, copies: 3, when: {step: 2}}",
        Survived(&["port 6006 is taken", "all are connected"]),
    ),
    // Nobody answers, so that the client still waits at the end.
    (
        "bound-port: {port: 6006}; http-request: {port: 6006, path: /, when: {step: 2}}",
        Inconclusive(&["fault 2, http-request", "0 of 1 clients of port 6006 were done"]),
    ),
    (
        "http-request: {port: 6006, path: /, copies: 2, when: {step: 2}}",
        Inconclusive(&["fault 1, http-request", "0 of 2 clients of port 6006 were done"]),
    ),
    // Nothing listens beside the target: the port of the target is its own.
    (
        "http-request: {port: 22, idle: true, when: {step: 2}}",
        Inconclusive(&["fault 1, http-request", "0 of 1 clients of port 22 were done"]),
    ),
    // Two terminations: the evidence names the one that it is of.
    (
        "crash: {when: {step: 4}}; crash: {when: {step: 8}}",
        Survived(&["every process was killed after step 4", "every process was killed after step 8"]),
    ),
    (
        "crash: {when: {step: 4}}; crash: {when: {step: 3000}}",
        Inconclusive(&["fault 2, crash: the run ended"]),
    ),
    // A supervisor gives up in the end, and so does a fault.
    (
        "crash: {persistence: persistent, when: {step: 4}}",
        Survived(&["every process was killed after step 4", "after step 4"]),
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        missing(&GATE);
        a_trial_counts_only_if_each_fault_was_effective,
        a_call_that_does_not_come_in_each_run_is_tried_again_and_counted,
        a_changed_clock_counts_if_the_target_asks_for_the_time_afterwards,
    ];
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Program("python3")]));
        evidence_has_the_bytes_that_calls_within_the_kernel_moved,
        a_wait_that_can_not_follow_the_clock_makes_its_trial_inconclusive,
    ]);
    trials.extend(trials![
        missing(SANDBOX.iter().chain(&GATE).chain(&[Need::Mechanism("read-only-remount")]));
        a_failed_call_is_the_evidence_of_a_disk_fault_with_or_without_a_phase,
    ]);
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Mechanism("fuse")]));
        another_file_system_counts_if_a_process_met_its_trait_and_other_faults_work_on_it,
    ]);
    trials
}

/// Runs faults, separated by `; `, against a trainer.
fn run(target: &SmallTarget<'_>, method: &str, more: &str) -> ScenarioRun {
    let faults = method.split("; ").map(|fault| format!("  - {fault}\n")).collect::<String>();
    let scenario = format!(
        "version: 1\nid: fs-01\ntitle: faults under test\nseverity: extra\ntarget: {{use: target.yaml}}\n{more}\
         method:\n{faults}expect:\n  - always: {{outcome: [recovered]}}\n"
    );
    ScenarioFiles { target: target.to_yaml(), scenario }.run()
}

fn check(run: &ScenarioRun, method: &str, expected: &Expected) {
    let verdict = run.verdict();
    let (parts, text) = match (expected, verdict) {
        (Survived(parts), Verdict::Survived) => (parts, run.trials()[0].evidence.join("\n")),
        (Inconclusive(parts), Verdict::Inconclusive { why }) => (parts, why.clone()),
        _ => panic!("{method}: {verdict:?}\n{}", run.printed),
    };
    for part in *parts {
        assert!(text.contains(part), "{method}: `{part}` is not in `{text}`");
    }
    let code = if matches!(expected, Survived(_)) { 0 } else { 3 };
    assert_eq!(run.code, code, "{method}: {}", run.printed);
}

fn script(name: &str) -> String {
    workspace().join("harness/tests/targets").join(name).display().to_string()
}

fn a_trial_counts_only_if_each_fault_was_effective() {
    let program = script("stub.sh");
    let start = "['{program}', sound, '{root}']";
    let target = SmallTarget { program: &program, start, stall: LONG_STALL, more: "" };
    for (method, expected) in &METHODS {
        check(&run(&target, method, ""), method, expected);
    }
}

fn evidence_has_the_bytes_that_calls_within_the_kernel_moved() {
    let program = script("copies.py");
    for call in ["sendfile", "copy_file_range", "write"] {
        let start = format!("['{{program}}', {call}, '{{root}}']");
        let target = SmallTarget { program: &program, start: &start, stall: LONG_STALL, more: "" };
        let at = "when: {call: {to: [write], on: 'ckpt/temporary', at: 2}}";
        let short = run(&target, &format!("short-call: {{bytes: 700, {at}}}"), "");
        check(&short, call, &Survived(&["moved only 700 bytes"]));
        assert!(short.trial_output().contains(&"moved 700"), "{call}: {:?}", short.trial_output());
        let killed = run(&target, &format!("crash: {{point: inside, {at}}}"), "");
        check(&killed, call, &Survived(&["every process was killed after 30000 bytes of"]));
        // The recovery prints how much it found.
        assert!(killed.trial_output().contains(&"found 30000"), "{call}: {:?}", killed.trial_output());
    }
}

fn another_file_system_counts_if_a_process_met_its_trait_and_other_faults_work_on_it() {
    let program = script("stub.sh");
    let start = "['{program}', sound, '{root}']";
    let target = SmallTarget { program: &program, start, stall: LONG_STALL, more: "" };
    let file_system = "file-system: {place: checkpoints, ignores-case: true}";
    let asks = "run-command: {command: [cat, '{root}/ckpt/LATEST'], when: restart}";
    let kill = "crash: {when: {call: {during: checkpoint-save, to: [rename], at: 1}}}";
    let delay = "delay-call: {time: 1 ms, when: {call: {to: [rename], at: 1}}}";
    let damage = "damage-files: {files: 'ckpt/latest', how: [age], when: restart}";
    let evidence = [
        "`LATEST` was asked for, and it was `latest`",
        "rename(ckpt/temporary -> ckpt/latest), call 1: takes 1ms",
        "in checkpoint-save 3",
        "`ckpt/latest`: dated to 2001",
    ];
    let method = [file_system, delay, kill, damage, asks].join("; ");
    let found = run(&target, &method, "");
    assert!(matches!(found.verdict(), Verdict::Survived), "{}", found.printed);
    let text = found.trials()[0].evidence.join("\n");
    evidence.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in `{text}`"));
    let why = Inconclusive(&["fault 1, file-system: no name was found in another case"]);
    check(&run(&target, file_system, ""), file_system, &why);
}

/// The first one goes on when a save fails, and the second one saves nothing.
fn a_failed_call_is_the_evidence_of_a_disk_fault_with_or_without_a_phase() {
    const WRITES: &str = r#"['{program}', -c, 'cd $1; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.02; echo step $i; { head -c 9000 /dev/zero >ckpt/$i; } 2>ckpt.log || echo failed $i; done; echo saved step 0; echo finished with 9', sh, '{root}']"#;
    const IDLES: &str = r#"['{program}', -c, 'for i in 1 2 3 4 5 6 7 8 9; do sleep 0.02; echo step $i; done; echo saved step 0; echo finished with 9', sh, '{root}']"#;
    const MOUNT: &str = "mounts: [{place: checkpoints, size: 1 MiB, inodes: 40}]\n";
    for (method, errno) in [
        ("fill-disk: {place: checkpoints, leave: 0 B, when: {step: 3}}", "failed with ENOSPC"),
        ("fill-disk: {place: checkpoints, leave: 0 B}", "failed with ENOSPC"),
        ("exhaust-inodes: {place: checkpoints, when: {step: 3}}", "failed with ENOSPC"),
        ("read-only: {place: checkpoints, when: {step: 3}}", "failed with EROFS"),
    ] {
        let target = |start| SmallTarget { program: "/bin/sh", start, stall: LONG_STALL, more: "" };
        let writes = run(&target(WRITES), method, MOUNT);
        assert_eq!(*writes.verdict(), Verdict::Survived, "{method}: {}", writes.printed);
        assert!(writes.trials()[0].evidence[0].contains(errno), "{method}: {:?}", writes.trials()[0]);
        let idles = run(&target(IDLES), method, MOUNT);
        check(&idles, method, &Inconclusive(&["no call in `checkpoints` failed with E"]));
    }
}

/// A trainer whose steps run a command.
fn steps_with(command: &str) -> String {
    format!(
        "['{{program}}', -c, 'cd $1; i=0; while [ $i -lt 9 ]; do i=$((i+1)); sleep 0.05; {command}; echo step $i; \
         done; echo saved step 0; echo finished with 9', sh, '{{root}}']"
    )
}

fn a_changed_clock_counts_if_the_target_asks_for_the_time_afterwards() {
    let start = steps_with("echo now $(date +%s)");
    let target = SmallTarget { program: "/bin/sh", start: &start, stall: LONG_STALL, more: "" };
    let nows = |run: &ScenarioRun| -> Vec<i64> {
        run.trial_output().iter().filter_map(|line| line.strip_prefix("now ")?.parse().ok()).collect()
    };
    for (method, evidence) in [
        ("clock: {by: [-1 d], when: {step: 3}}", &["its wall clock is 1 d back"]),
        ("clock: {by: [+3650 d], when: {step: 3}}", &["its wall clock is 3650 d ahead"]),
    ] {
        let run = run(&target, method, "");
        check(&run, method, &Survived(evidence));
        let shown = nows(&run);
        assert_eq!(shown.len(), 9, "{}", run.printed);
        let days = if method.contains("-1 d") { -1 } else { 3650 };
        // Within a minute, in which the run has gone on.
        let apart = shown[8] - shown[0] - days * 86_400;
        assert!((0..60).contains(&apart), "{method}: {shown:?}");
    }
    let method = "clock: {to: ['1970-01-02T00:00:00Z'], until: {output: '^step 6'}}";
    let run_with_end = run(&target, method, "");
    check(&run_with_end, method, &Survived(&["set to 1970-01-02T00:00:00Z"]));
    let ended = nows(&run_with_end);
    assert!((86_400..86_460).contains(&ended[0]) && ended[8] > 1_700_000_000, "{ended:?}");
    // Two clocks: that which was set last is in force, and each needs its own evidence.
    let method = "clock: {by: [-1 d]}; clock: {by: [-6 min], when: {step: 5}}";
    let two = run(&target, method, "");
    check(&two, method, &Survived(&["1 d back", "6 min back"]));
    let nows_of_two = nows(&two);
    assert!((-360..-300).contains(&(nows_of_two[8] - nows_of_two[0])), "{nows_of_two:?}");
    // A persistent one starts from where it is: at step 7 and at step 8.
    let method = "clock: {by: [+1 d], persistence: persistent, when: {step: 7}}";
    let again = run(&target, method, "");
    check(&again, method, &Survived(&["1 d ahead"]));
    let nows_again = nows(&again);
    let days = (nows_again[8] - nows_again[6]) / 86_400;
    assert!(days == 2, "{nows_again:?}");
    let start = steps_with("true");
    let target = SmallTarget { program: "/bin/sh", start: &start, stall: LONG_STALL, more: "" };
    let method = "clock: {by: [-6 min], when: {step: 3}}";
    let why = Inconclusive(&["fault 1, clock: the target did not ask for the time after the change"]);
    check(&run(&target, method, ""), method, &why);
}

/// The target asks for the time first, so that there is evidence before.
fn a_wait_that_can_not_follow_the_clock_makes_its_trial_inconclusive() {
    const WAITS: &str = r#"['{program}', -u, -c, 'import ctypes, time; time.time(); print("step 1"); time.sleep(0.3); ctypes.CDLL(None).syscall(243, -1, None, 0, None, ctypes.byref((ctypes.c_long * 2)(1, 0))); print("saved step 0"); print("finished with 9")']"#;
    let target = SmallTarget { program: "python3", start: WAITS, stall: LONG_STALL, more: "" };
    let parts =
        &["fault 1, clock: not all of the target may have gone by the changed clock", "mq_timedreceive"];
    for method in [
        "clock: {by: [+1 h]}",
        "clock: {by: [+1 h], optional: true}; delay-call: {time: 1 ms, optional: true, when: {call: {to: [mkdir], at: 1}}}",
    ] {
        let run = run(&target, method, "");
        let effective = run.events().filter(|event| matches!(event, scenarios::Event::FaultEffective { .. }));
        assert_eq!(effective.count(), 1, "{}", run.printed);
        if method.contains("optional") {
            check(&run, method, &Inconclusive(&["all its faults are optional"]));
        } else {
            check(&run, method, &Inconclusive(parts));
        }
    }
}

/// The first run makes three renames, every later one makes one.
fn a_call_that_does_not_come_in_each_run_is_tried_again_and_counted() {
    const VARIES: &str = r#"['{program}', -c, 'cd $1; [ -f ckpt/old ] && echo resumed from step 1 && echo finished with 1 && exit; n=3; [ -f "$2"/ran ] && n=1; : >"$2"/ran; i=0; while [ $i -lt $n ]; do i=$((i+1)); rm -f ckpt/old; echo x >ckpt/new; mv ckpt/new ckpt/old; done; echo step 1; echo saved step 1; echo finished with 1', sh, '{root}', 'OUTSIDE']"#;
    for (at, is_inconclusive) in [("every", false), ("3", true)] {
        let outside = tempfile::tempdir().unwrap();
        let place = outside.path().display().to_string();
        let start = VARIES.replace("OUTSIDE", &place);
        let more = format!("writable: ['{place}']");
        let target = SmallTarget { program: "/bin/sh", start: &start, stall: LONG_STALL, more: &more };
        let method = format!("delay-call: {{time: 1 ms, when: {{call: {{to: [rename], at: {at}}}}}}}");
        let run = run(&target, &method, "");
        if is_inconclusive {
            let why = &["trial 1: fault 1, delay-call: the target made 1 matching calls", "rename"];
            check(&run, at, &Inconclusive(why));
        } else {
            check(&run, at, &Survived(&["call 1: takes 1ms"]));
            assert!(run.printed.contains("1 of 3 system calls (2 not reached)"), "{}", run.printed);
        }
        let repeated = run.events().filter(|event| matches!(event, scenarios::Event::TrialRepeated { .. }));
        assert_eq!(repeated.count(), if is_inconclusive { 2 } else { 4 }, "{}", run.printed);
    }
}
