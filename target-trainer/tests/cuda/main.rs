//! Compares the CUDA kernels, model and engine with the CPU. Uses a real GPU if there is one. Otherwise the
//! test program restarts itself with the simulated GPU's libraries.
//!
//! Run: `cargo test -p target-trainer --test cuda`. `SEED` sets the seed of the random inputs; the seed is
//! always printed.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]
#![expect(clippy::print_stderr, reason = "the seed and the reason for skipped tests are printed")]

mod attention;
mod engine;
mod kernels;
mod model;
mod sys;
mod test_device;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use target_trainer::device::{DeviceError, cuda_device_count};

/// Environment variable that is set in the restarted process.
const RESTARTED_VARIABLE: &str = "CUDA_TESTS_SIMULATED";
/// The names under which the loader looks for NVIDIA's libraries.
const LIBRARY_NAMES: [&str; 6] = [
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnvidia-ml.so",
    "libnvidia-ml.so.1",
];

/// Name and function of a test.
type TestCase = (&'static str, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_restarted = std::env::var_os(RESTARTED_VARIABLE).is_some();
    let skip_reason = match check_device() {
        Ok(()) => None,
        Err(_) if !is_restarted && !arguments.list => match restart_with_simulated_gpu() {
            Ok(infallible) => match infallible {},
            Err(reason) => Some(reason),
        },
        Err(reason) => Some(reason),
    };
    if let Some(reason) = &skip_reason {
        eprintln!("skipped: {reason}");
    }
    let mut trials = vec![Trial::test("without_a_driver_cuda_is_unavailable", || Ok(without_a_driver()?))];
    for (name, test) in kernels::TESTS.iter().chain(attention::TESTS).chain(model::TESTS).chain(engine::TESTS)
    {
        let trial = Trial::test(*name, move || {
            test();
            Ok(())
        });
        trials.push(trial.with_ignored_flag(skip_reason.is_some()));
    }
    // The tests run sequentially: they share one device, and some of them measure its memory.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Checks that there is a device that can run the kernels.
fn check_device() -> Result<(), String> {
    match (cuda_device_count(), sys::simulated_kernel_count()) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(0), _) => Err("there is no CUDA device".to_owned()),
        (Ok(_), Some(0)) => {
            Err("the simulated GPU was built without kernels: install a C++ compiler".to_owned())
        }
        (Ok(_), _) => Ok(()),
    }
}

/// Links the simulated driver's library under the names that the loader looks for, and restarts this program.
/// Returns only on failure.
fn restart_with_simulated_gpu() -> Result<std::convert::Infallible, String> {
    let library = build_simulated_gpu()?;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
    let failed = |error: std::io::Error| format!("could not link `{}`: {error}", dir.display());
    std::fs::create_dir_all(&dir).map_err(failed)?;
    for name in LIBRARY_NAMES {
        let link = dir.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        drop(std::fs::remove_file(&link));
        std::os::unix::fs::symlink(&library, &link).map_err(failed)?;
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("could not find the path of the test program: {error}"))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env("LD_LIBRARY_PATH", &dir).env(RESTARTED_VARIABLE, "1");
    Err(format!("could not restart the test program: {}", command.exec()))
}

/// Builds the simulated GPU with the cargo that runs the tests, because only cargo knows whether the library
/// is up to date.
fn build_simulated_gpu() -> Result<PathBuf, String> {
    let own_path = std::env::current_exe().unwrap();
    let dirs: Vec<&Path> = own_path.ancestors().skip(1).take(2).collect();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut build = Command::new(cargo);
        build.current_dir(workspace).args(["build", "--quiet", "-p", "simgpu"]);
        if dirs.iter().any(|dir| dir.ends_with("release")) {
            build.arg("--release");
        }
        let output = build.output().map_err(|error| format!("could not start cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("could not build simgpu:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let found = dirs.iter().rev().map(|dir| dir.join("libsimgpu.so")).find(|path| path.exists());
    found.ok_or_else(|| "there is neither a GPU nor libsimgpu.so; run `cargo build -p simgpu`".to_owned())
}

/// Runs in a child process whose loader finds no driver.
fn without_a_driver() -> Result<(), String> {
    const CHILD_VARIABLE: &str = "CUDA_TESTS_WITHOUT";
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return match cuda_device_count() {
            Err(error @ DeviceError::Unavailable { .. })
                if error.to_string().contains("no NVIDIA driver") =>
            {
                Ok(())
            }
            Ok(_) if Path::new("/dev/nvidiactl").exists() => Ok(()),
            other => Err(format!("{other:?}")),
        };
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "without_a_driver_cuda_is_unavailable"]);
    child.env_remove("LD_LIBRARY_PATH").env(CHILD_VARIABLE, "1").env(RESTARTED_VARIABLE, "1");
    let output = child.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}
