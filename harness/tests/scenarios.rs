//! One test for each shipped scenario, and one for each shipped scenario that has guards: it must be violated
//! without them. Tests that this machine cannot run are listed as ignored, with the reason.

#![expect(
    clippy::print_stderr,
    reason = "a failed expectation must stop the test, and a skipped test prints the reason"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use scenarios::{Scenario, TargetGpu};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trainwreck");

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each scenario uses all cores by itself.
    arguments.test_threads.get_or_insert(1);
    let missing = missing_mechanisms();
    missing.iter().for_each(|reason| eprintln!("skipped: {reason}"));
    // If something cannot be built, its tests run, and fail.
    let is_missing = |name: &str| {
        missing
            .iter()
            .any(|line| line.split_whitespace().nth(1) == Some(name) && !line.contains("could not build"))
    };
    let has_sandbox = !is_missing("user-namespace") && !is_missing("tmpfs");
    let (simulated, real) = (!is_missing("simulated-gpu"), !is_missing("real-gpu"));
    let gpus = scenario_gpus();
    let mut trials = Vec::new();
    for (id, guards) in shipped_scenarios() {
        let is_supported = has_sandbox
            && match gpus.iter().find(|(name, _)| *name == id).and_then(|(_, gpu)| gpu.as_ref()) {
                None => true,
                Some(TargetGpu::Simulated(_)) => simulated,
                Some(TargetGpu::Real) => real,
            };
        let survived = id.clone();
        trials.push(
            Trial::test(format!("{id}_is_survived"), move || run_verb("run", &survived))
                .with_ignored_flag(!is_supported),
        );
        if !guards.is_empty() {
            trials.push(
                Trial::test(format!("{id}_is_violated_without_its_guards"), move || run_verb("ablate", &id))
                    .with_ignored_flag(!is_supported),
            );
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap_or_else(|error| panic!("{PROGRAM}: {error}"))
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn missing_mechanisms() -> Vec<String> {
    lines(&run(&["doctor"])).into_iter().filter(|line| line.starts_with('-')).collect()
}

/// Ids and guards, as `list` prints them.
fn shipped_scenarios() -> Vec<(String, String)> {
    let listed = lines(&run(&["list"]));
    let id_and_guards = |line: &String| {
        Some((line.split_whitespace().next()?.to_owned(), line.rsplit("  ").next()?.trim().to_owned()))
    };
    listed.iter().filter_map(id_and_guards).collect()
}

/// Ids, with the GPU that each scenario gives its target.
fn scenario_gpus() -> Vec<(String, Option<TargetGpu>)> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/library");
    let entries =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = entries(library).flat_map(entries).filter_map(|path| std::fs::read_to_string(path).ok());
    let read = |text: String| {
        let scenario = Scenario::parse(&text, "library").unwrap_or_else(|error| panic!("{error}"));
        (scenario.id().to_owned(), scenario.gpu().cloned())
    };
    texts.map(read).collect()
}

fn run_verb(verb: &str, id: &str) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let output = run(&[verb, id, "--out", &out.path().join("out").display().to_string()]);
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}
