//! Tests as libtest-mimic trials. A test that this machine cannot run is listed as ignored, and its kind is
//! the reason: it never counts as passed. The tests of the harness use this file too, so it must not know the
//! trainer.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test may return. A panic fails the test as well.
pub(crate) trait TestResult {
    fn into_result(self) -> Result<(), Failed>;
}

impl TestResult for () {
    fn into_result(self) -> Result<(), Failed> {
        Ok(())
    }
}

impl TestResult for Result<(), Failed> {
    fn into_result(self) -> Result<(), Failed> {
        self
    }
}

/// Makes a trial of a test. `missing` is what the test needs and the machine lacks.
pub(crate) fn trial<R: TestResult>(
    name: impl Into<String>,
    missing: Option<&str>,
    test: impl FnOnce() -> R + Send + 'static,
) -> Trial {
    let trial = Trial::test(name, move || test().into_result());
    match missing {
        Some(missing) => trial.with_kind(format!("skipped: {missing}")).with_ignored_flag(true),
        None => trial,
    }
}

/// The name of a test in a module: without the test program, as cargo shows the tests of a library.
pub(crate) fn name_in(module: &str, test: &str) -> String {
    module.split_once("::").map_or(test.to_owned(), |(_, module)| format!("{module}::{test}"))
}

/// Makes a trial of each function, named like the function: `trials![missing; first, second]`. `missing` is
/// an `Option<String>`, as in [`trial`]; without it, every machine can run the tests.
macro_rules! trials {
    ($missing:expr; $($test:ident),+ $(,)?) => {{
        let missing: Option<String> = $missing;
        let name = |test: &str| $crate::support::trial::name_in(module_path!(), test);
        vec![$($crate::support::trial::trial(name(stringify!($test)), missing.as_deref(), $test)),+]
    }};
    ($($test:ident),+ $(,)?) => { trials![None; $($test),+] };
}

/// Runs the trials that the command line selects, two for each core: they wait for programs that they start.
pub(crate) fn run(trials: Vec<Trial>) -> ExitCode {
    run_side_by_side(2 * core_count(), trials)
}

/// Like [`run`], more for each core: for tests that mostly wait.
pub(crate) fn run_mostly_waiting(trials: Vec<Trial>) -> ExitCode {
    run_side_by_side(3 * core_count(), trials)
}

/// Like [`run`], one after the other.
pub(crate) fn run_sequentially(trials: Vec<Trial>) -> ExitCode {
    run_side_by_side(1, trials)
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// So many at the same time, unless the command line asks for another number.
fn run_side_by_side(count: usize, trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(count);
    libtest_mimic::run(&arguments, trials).exit_code()
}
