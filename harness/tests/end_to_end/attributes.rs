//! Modes, owners, extended attributes, times, hard links and holes are part of a crash state: a program that
//! changes them runs bare and behind the gate with the same results, and its last state has the same tree. No
//! recovery changes the files of another state.
//!
//! `cargo test --test end_to_end -- attributes::`. Some tests need root, to give files to other users. Not covered:
//! whole trees of the states in between.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use engine::explore::{
    CrashCandidate, MaterializePlace, OpRecorder, RecorderConfig, Recording, WatchedRoot, copy_tree,
    materialize,
};
use engine::gate::FilterOptions;
use engine::sandbox::ProcessExit;
use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};

use crate::support::command::{TRAINWRECK, output_text};
use crate::support::machine::{GATE, Need, missing};
use crate::support::program_files::copy_program;
use crate::support::trial::{name_in, trial};
use crate::support::watched_sandbox::WatchedSandbox;

/// Seconds since 1970 that are later than every time that a program sets.
const BEGAN_UNIX_S: i64 = 1_700_000_000;

pub(crate) fn trials() -> Vec<Trial> {
    let with = |needs: &[Need]| missing(GATE.iter().chain(needs));
    let mut trials = trials![
        with(&[Need::Program("python3"), Need::Root]);
        every_attribute_of_every_kind_of_file_is_part_of_a_state,
        a_call_keeps_or_clears_set_id_bits_as_without_the_gate,
    ];
    trials.extend(trials![
        with(&[Need::Program("python3")]);
        stores_into_a_mapping_reach_no_other_state,
        stores_into_a_mapping_reach_no_other_state_on_a_disk,
        stores_into_a_mapping_reach_no_other_state_of_a_fork_server,
        what_a_recovery_does_to_its_files_reaches_no_other_state,
    ]);
    trials.extend(trials![
        missing(&GATE);
        a_program_and_a_secret_keep_their_modes,
        a_mode_that_is_not_synced_is_found,
        a_mode_that_is_synced_is_no_finding,
    ]);
    let random = random_trials(with(&[Need::Program("python3"), Need::Root]).as_deref()).collect::<Vec<_>>();
    random.into_iter().chain(trials).collect()
}

/// The program that changes and describes trees.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/attributes.py")
}

fn run_script(verb: &str, argument: &str, cwd: &Path) -> String {
    let output = Command::new("python3")
        .arg("-B")
        .arg(script())
        .args([verb, argument])
        .current_dir(cwd)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn describe(dir: &Path) -> Vec<String> {
    run_script("describe", ".", dir).lines().map(String::from).collect()
}

#[track_caller]
fn assert_same<T: PartialEq + Debug>(what: &str, found: &[T], expected: &[T]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

/// Runs `changes` on the tree that `before` makes: bare, and recorded. Both must print the same and leave the
/// same tree, and so must the last crash state of the recording.
fn check(before: &[Value], changes: &[Value]) -> Recording {
    let (before, changes) = (Value::from(before).to_string(), Value::from(changes).to_string());
    let dir = tempfile::tempdir().unwrap();
    let [bare, original] = ["bare", "original"].map(|name| dir.path().join(name));
    for tree in [&bare, &original] {
        std::fs::create_dir(tree).unwrap();
        run_script("run", &before, tree);
    }
    let copy = dir.path().join("copy");
    copy_tree(&original, &copy).unwrap();
    assert_same("the copy", &describe(&copy), &describe(&original));
    let argv = ["python3", "-B", script().to_str().unwrap(), "run", &changes].map(String::from);
    let argv = argv.each_ref().map(String::as_str);
    // In a sandbox too, where no user keeps set-id bits at a write.
    let (exit, printed) = WatchedSandbox::of(bare.clone()).run_bare(&argv);
    assert_eq!(exit, ProcessExit::Exited(0), "{printed}");
    let expected = describe(&bare);

    let setup = WatchedSandbox::of(copy.clone());
    let root = WatchedRoot { seen_by_target: setup.watched.clone(), seen_by_harness: copy.clone() };
    let config = RecorderConfig {
        roots: &[root],
        originals: &[vec![original]],
        payload_log: &dir.path().join("payload"),
        output_pipes: Vec::new(),
        saved_pattern: None,
        announced: Vec::new(),
        phase: None,
    };
    let recorder = Arc::new(Mutex::new(OpRecorder::new(config).unwrap()));
    let options = FilterOptions { extra_kinds: Vec::new(), connections: false, ..FilterOptions::default() };
    let (exit, recorded_print) = setup.run(&argv, &options, &recorder);
    let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    assert_same("the results of the calls", &lines(&recorded_print), &lines(&printed));
    assert_eq!(exit, ProcessExit::Exited(0), "{recorded_print}");
    assert_same("the recorded run", &describe(&copy), &expected);

    let recording = recorder.lock().unwrap().finish().unwrap();
    assert_eq!(recording.gaps.unknown_files, 0);
    let base = dir.path().join("state");
    std::fs::create_dir_all(base.join("0")).unwrap();
    let place =
        MaterializePlace { base: base.clone(), dir_names: vec!["0".into()], began_unix_s: BEGAN_UNIX_S };
    materialize(&recording, &CrashCandidate::whole(recording.ops.len()), place).unwrap();
    assert_same("the last state", &describe(&base.join("0")), &expected);
    recording
}

/// The forms of a call that name a file in another way.
const FORMS: [&str; 11] =
    ["path", "fd", "at", "empty", "procfd", "absolute", "link", "slash", "dot", "utimes", "futimesat"];

/// One call of each kind in each form on a file, as operations of the script.
fn calls_in_form(path: &str, form: &str) -> Vec<Value> {
    vec![
        json!(["chown", path, form, 1001, 1002]),
        json!(["chmod", path, form, 0o2751]),
        json!(["setxattr", path, form, "user.added", "value"]),
        json!(["setxattr", path, form, "user.changed", "new"]),
        json!(["removexattr", path, form, "user.removed"]),
        json!(["utimes", path, form, [111, 222]]),
    ]
}

/// A file of each kind with this prefix, with attributes that differ from those of a new file.
fn files_with_attributes(prefix: &str) -> Vec<Value> {
    let name = |kind: &str| format!("{prefix}-{kind}");
    let mut operations = vec![
        json!(["create", name("small"), 0o640, 10]),
        json!(["create", name("large"), 0o640, 70_000]),
        json!(["mkdir", name("dir"), 0o750]),
        json!(["symlink", name("small"), name("symlink")]),
    ];
    for kind in ["small", "large", "dir"] {
        operations.push(json!(["setxattr", name(kind), "path", "user.changed", "old"]));
        operations.push(json!(["setxattr", name(kind), "path", "user.removed", "old"]));
        operations.push(json!(["chown", name(kind), "path", 11, 12]));
        operations.push(json!(["utimes", name(kind), "path", [33, 44]]));
    }
    operations.push(json!(["chown", name("symlink"), "link", 13, 14]));
    operations.push(json!(["utimes", name("symlink"), "link", [55, 66]]));
    operations
}

const KINDS: [&str; 4] = ["small", "large", "dir", "symlink"];

fn every_attribute_of_every_kind_of_file_is_part_of_a_state() {
    let mut before = vec![
        json!(["umask", 0o027]),
        json!(["mkfifo", "pipe", 0o604]),
        json!(["sparse", "holes", 8 << 20]),
        json!(["create", "program", 0o755, 40_000]),
        json!(["chmod", "program", "path", 0o6755]),
        json!(["link", "program", "program-again"]),
        json!(["mkdir", "shared", 0o775]),
        json!(["chmod", "shared", "path", 0o3775]),
        json!(["chown", "shared", "path", 21, 22]),
        json!(["mkdir", "sealed", 0o700]),
        json!(["create", "sealed/inside", 0o400, 20_000]),
        json!(["chmod", "sealed", "path", 0o0]),
        json!(["utimes", "shared", "path", [77, 88]]),
        json!(["chmod", ".", "path", 0o1771]),
        json!(["setxattr", ".", "path", "user.root", "kept"]),
    ];
    let mut changes = vec![
        json!(["umask", 0o002]),
        json!(["create", "shared/new", 0o666, 20]),
        json!(["mkdir", "shared/below", 0o777]),
        json!(["umask", 0o077]),
        json!(["create", "shared/below/private", 0o666, 30_000]),
        json!(["create", "special", 0o4755, 5]),
        json!(["mkdir", "sticky", 0o1777]),
        json!(["link", "holes", "holes-again"]),
        json!(["rename", "pipe", "pipe-renamed"]),
        json!(["chown", ".", "path", 31, 32]),
        json!(["create", "touched", 0o644, 5]),
        json!(["utimes", "touched", "path", [99, 99]]),
        json!(["utimes", "touched", "fd", null]),
        json!(["create", "half", 0o644, 5]),
        json!(["utimes", "half", "path", [123, 456]]),
        json!(["utimes", "half", "path", ["omit", 789]]),
        json!(["utimes", "half", "path", [321, "omit"]]),
        json!(["create", "written", 0o644, 5]),
        json!(["utimes", "written", "path", [123, 456]]),
        json!(["append", "written", "more"]),
        json!(["chmod", "written", "path", 0o600]),
        json!(["chmod", "missing", "path", 0o600]),
    ];
    for form in FORMS {
        before.extend(files_with_attributes(&format!("old-{form}")));
        changes.extend(files_with_attributes(&format!("new-{form}")));
        for kind in KINDS {
            changes.extend(calls_in_form(&format!("old-{form}-{kind}"), form));
            changes.extend(calls_in_form(&format!("new-{form}-{kind}"), form));
        }
    }
    before.extend(files_with_attributes("untouched"));
    let recording = check(&before, &changes);
    let kinds = recording.count_by_kind();
    for kind in ["chmod", "chown", "utimes", "setxattr"] {
        assert!(kinds.get(kind).is_some_and(|count| *count > 20), "{kind}: {kinds:?}");
    }
}

/// Whether the kernel clears a setgid bit depends on the other bits, and on the groups of whoever makes the call.
fn a_call_keeps_or_clears_set_id_bits_as_without_the_gate() {
    let mut before = vec![json!(["umask", 0])];
    let mut changes = vec![json!(["umask", 0])];
    for group in [0, 3] {
        for mode in [0o2644, 0o2654, 0o4755, 0o6644, 0o6755, 0o2066] {
            for (index, change) in [json!("append"), json!("truncate"), json!("sparse")].iter().enumerate() {
                let name = format!("{group}-{mode:o}-{index}");
                before.push(json!(["create", name, 0o644, 10]));
                before.push(json!(["chown", name, "path", 5, group]));
                before.push(json!(["chmod", name, "path", mode]));
                changes.push(match index {
                    0 => json!([change, name, "more"]),
                    1 => json!([change, name, 3]),
                    _ => json!([change, name, 20]),
                });
            }
            let dir = format!("{group}-{mode:o}-dir");
            before.push(json!(["mkdir", dir, 0o755]));
            before.push(json!(["chown", dir, "path", 5, group]));
            before.push(json!(["chmod", dir, "path", mode | 0o111]));
            changes.push(json!(["create", format!("{dir}/new"), mode, 20]));
            changes.push(json!(["mkdir", format!("{dir}/below"), mode]));
        }
    }
    check(&before, &changes);
}

/// A random operation on one of a few names.
fn random_operation() -> impl Strategy<Value = Value> {
    let name = || proptest::sample::select(vec!["a", "b", "c", "d/a", "d/b", "d", "e"]);
    let form = || proptest::sample::select(FORMS.to_vec());
    let mode = || (0u32..0o10000).boxed();
    let id = || 0u32..4;
    let time = || proptest::sample::select(vec![json!(5), json!(600), json!("now"), json!("omit")]);
    let xattr = || proptest::sample::select(vec!["user.x", "user.y"]);
    prop_oneof![
        2 => (name(), mode(), proptest::sample::select(vec![0, 10, 20_000]))
            .prop_map(|(name, mode, size)| json!(["create", name, mode | 0o200, size])),
        1 => (name(), mode()).prop_map(|(name, mode)| json!(["mkdir", name, mode])),
        1 => (name(), name()).prop_map(|(to, name)| json!(["symlink", to, name])),
        1 => (name(), name()).prop_map(|(from, to)| json!(["link", from, to])),
        1 => (name(), name()).prop_map(|(from, to)| json!(["rename", from, to])),
        1 => name().prop_map(|name| json!(["unlink", name])),
        1 => name().prop_map(|name| json!(["append", name, "more"])),
        1 => (name(), 0u32..30_000).prop_map(|(name, size)| json!(["truncate", name, size])),
        1 => (0u32..0o1000).prop_map(|mask| json!(["umask", mask])),
        3 => (name(), form(), mode()).prop_map(|(name, form, mode)| json!(["chmod", name, form, mode])),
        3 => (name(), form(), id(), id()).prop_map(|(name, form, uid, gid)| json!(["chown", name, form, uid, gid])),
        3 => (name(), form(), time(), time())
            .prop_map(|(name, form, accessed, modified)| json!(["utimes", name, form, [accessed, modified]])),
        1 => (name(), form()).prop_map(|(name, form)| json!(["utimes", name, form, null])),
        3 => (name(), form(), xattr(), "[a-z]{0,3}")
            .prop_map(|(name, form, xattr, value)| json!(["setxattr", name, form, xattr, value])),
        2 => (name(), form(), xattr()).prop_map(|(name, form, xattr)| json!(["removexattr", name, form, xattr])),
    ]
}

/// The random tests run side by side, because a sandbox mostly waits.
fn random_trials(missing: Option<&str>) -> impl Iterator<Item = Trial> {
    (1..=4).map(move |part| {
        let name = format!("random_changes_of_attributes_are_part_of_a_state_{part}");
        trial(name_in(module_path!(), &name), missing, move || check_random_changes(part))
    })
}

fn check_random_changes(part: u64) {
    let operations = |count| proptest::collection::vec(random_operation(), 0..count);
    let mut config =
        Config { cases: 8, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    if let RngSeed::Fixed(seed) = config.rng_seed {
        config.rng_seed = RngSeed::Fixed(seed + part);
    }
    let mut runner = TestRunner::new(config);
    let result = runner.run(&(operations(20), operations(40)), |(before, changes)| {
        let with_directory = |operations: Vec<Value>| {
            std::iter::once(json!(["mkdir", "d", 0o755])).chain(operations).collect::<Vec<_>>()
        };
        check(&with_directory(before), &with_directory(changes));
        Ok(())
    });
    result.unwrap();
}

/// Explores a trainer that saves in `watch`.
fn explore(watch: &Path, options: &[&str], command: &[&str]) -> Output {
    Command::new(TRAINWRECK)
        .args(["explore", "--watch", watch.to_str().unwrap(), "--saved", r"^saved step (?<step>\d+)"])
        .args(["--resumed", r"^resumed from step (?<step>\d+)", "--jobs", "2"])
        .args(options)
        .arg("--")
        .args(command)
        .output()
        .unwrap()
}

#[track_caller]
fn assert_exit_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", output_text(output));
}

/// Explores `targets/mapping.py`, whose recovery stores into its checkpoint and is killed while it is mapped.
/// The trees have this many bytes in addition, all of them a hole: large trees are materialized on a disk.
fn explore_mapping(hole_bytes: u64, options: &[&str]) {
    let watch = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| watch.path().join(name));
    std::fs::write(&first, [7; 40_000]).unwrap();
    std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::hard_link(&first, second).unwrap();
    File::create(watch.path().join("hole")).unwrap().set_len(hole_bytes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/mapping.py");
    let command = ["python3", script.to_str().unwrap(), watch.path().to_str().unwrap()];
    let options = [&["--same", r"^final sum (\w+)"], options].concat();
    let output = explore(watch.path(), &options, &command);
    assert_exit_code(&output, 0);
    let text = output_text(&output);
    assert!(text.contains("recovered") && !text.contains("crashed"), "{text}");
}

fn stores_into_a_mapping_reach_no_other_state() {
    explore_mapping(0, &[]);
}

fn stores_into_a_mapping_reach_no_other_state_on_a_disk() {
    explore_mapping(1 << 30, &["--crash", "process"]);
}

fn stores_into_a_mapping_reach_no_other_state_of_a_fork_server() {
    explore_mapping(0, &["--warm", "mmap"]);
}

/// Explores `targets/damages.py`, whose recovery damages every file that it has read.
fn what_a_recovery_does_to_its_files_reaches_no_other_state() {
    let watch = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/damages.py");
    let command = ["python3", script.to_str().unwrap(), watch.path().to_str().unwrap()];
    let options = ["--same", r"^final sum (\w+)", "--warm", "mmap,os,shutil"];
    let output = explore(watch.path(), &options, &command);
    assert_exit_code(&output, 0);
    let text = output_text(&output);
    assert!(text.contains("recovered") && !text.contains("crashed"), "{text}");
}

/// A correct saver in shell. `PREPARE` runs at each start; `SAVE` makes `t` from the step `s`.
const SAVER: &str = "set -e; cd \"$0\"; s=0; [ -f ckpt ] && s=$(cat ckpt); PREPARE; \
    echo resumed from step $s; \
    while [ $s -lt 2 ]; do s=$((s+1)); SAVE; mv t ckpt; sync .; echo saved step $s; done";

fn explore_saver(watch: &Path, prepare: &str, save: &str) -> Output {
    let script = SAVER.replace("PREPARE", prepare).replace("SAVE", save);
    explore(watch, &[], &["sh", "-c", &script, watch.to_str().unwrap()])
}

fn a_program_and_a_secret_keep_their_modes() {
    let watch = tempfile::tempdir().unwrap();
    copy_program("/bin/cat".as_ref(), &watch.path().join("program"));
    assert!(
        watch.path().join("program").metadata().unwrap().len() > 16 * 1024,
        "such files come from a pool"
    );
    let prepare = "./program /dev/null; \
        if [ -f secret ]; then [ $(stat -c %a secret) = 600 ]; else (umask 077; echo k > secret); fi";
    assert_exit_code(&explore_saver(watch.path(), prepare, "echo $s > t; sync t"), 0);
}

/// The recovery refuses a checkpoint that others may read.
const PRIVATE_ONLY: &str = "if [ -f ckpt ]; then [ $(stat -c %a ckpt) = 600 ]; fi";

fn a_mode_that_is_not_synced_is_found() {
    let watch = tempfile::tempdir().unwrap();
    let output = explore_saver(watch.path(), PRIVATE_ONLY, "echo $s > t; sync t; chmod 600 t");
    assert_exit_code(&output, 1);
    let text = output_text(&output);
    assert!(text.contains("chmod(t, 0600)  lost"), "{text}");
    assert!(text.contains("mode 0644 instead of 0600"), "{text}");
}

fn a_mode_that_is_synced_is_no_finding() {
    let watch = tempfile::tempdir().unwrap();
    let output = explore_saver(watch.path(), PRIVATE_ONLY, "echo $s > t; chmod 600 t; sync t");
    assert_exit_code(&output, 0);
}
