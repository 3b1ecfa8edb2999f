//! One test for each shipped scenario, and one for each guard that is taken away. What this machine can't do is listed
//! as ignored, and why is said.

#![expect(
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trainwreck");

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each scenario uses all cores by itself.
    arguments.test_threads.get_or_insert(1);
    let refused = refused();
    refused.iter().for_each(|why| eprintln!("skipped: {why}"));
    let rooms = refused.iter().all(|line| !line.contains("user-namespace") && !line.contains("tmpfs"));
    let mut trials = Vec::new();
    for (id, guards) in shipped() {
        let survived = id.clone();
        trials.push(
            Trial::test(format!("{id}_is_survived"), move || perform("run", &survived))
                .with_ignored_flag(!rooms),
        );
        if !guards.is_empty() {
            trials.push(
                Trial::test(format!("{id}_notices_when_its_guard_is_taken_away"), move || {
                    perform("prove", &id)
                })
                .with_ignored_flag(!rooms),
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

fn refused() -> Vec<String> {
    lines(&run(&["doctor"])).into_iter().filter(|line| line.starts_with('-')).collect()
}

/// Ids and guards, as `list` tells them.
fn shipped() -> Vec<(String, String)> {
    let listed = lines(&run(&["list"]));
    let words = |line: &String| {
        Some((line.split_whitespace().next()?.to_owned(), line.rsplit("  ").next()?.trim().to_owned()))
    };
    listed.iter().filter_map(words).collect()
}

fn perform(verb: &str, id: &str) -> Result<(), Failed> {
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
