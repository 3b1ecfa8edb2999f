//! Compares the CUDA kernels, model and engine with the CPU. Uses a real GPU if there is one. Otherwise the
//! test program restarts itself with the simulated GPU's libraries.
//!
//! Run: `cargo test -p target-trainer --test cuda`. `SEED` sets the seed of the random inputs; the seed is
//! always printed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed test may panic; the seed and the measured differences are printed"
)]

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test program uses a part of it")]
mod support;

mod attention;
mod engine;
mod kernels;
mod model;
mod sys;
mod test_device;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed};
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

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_restarted = std::env::var_os(RESTARTED_VARIABLE).is_some();
    let missing = match check_device() {
        Ok(()) => None,
        // A list names the tests; whether they can run is found out when they run.
        Err(_) if !is_restarted && arguments.list => None,
        Err(_) if !is_restarted => match restart_with_simulated_gpu() {
            Ok(infallible) => match infallible {},
            Err(reason) => Some(reason),
        },
        Err(reason) => Some(reason),
    };
    let missing = missing.and_then(|reason| reason.message().map(str::to_owned));
    let mut trials = trials![without_a_driver_cuda_is_unavailable];
    for part in [kernels::trials, attention::trials, model::trials, engine::trials] {
        trials.extend(part(missing.clone()));
    }
    // They share one device, and some of them measure its memory.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Checks that there is a device that can run the kernels.
fn check_device() -> Result<(), Failed> {
    match (cuda_device_count(), sys::simulated_kernel_count()) {
        (Err(error), _) => Err(error.into()),
        (Ok(0), _) => Err("there is no CUDA device".into()),
        (Ok(_), Some(0)) => Err("the simulated GPU was built without kernels: install a C++ compiler".into()),
        (Ok(_), _) => Ok(()),
    }
}

/// Links the simulated driver's library under the names that the loader looks for, and restarts this program.
/// Returns only on failure.
fn restart_with_simulated_gpu() -> Result<std::convert::Infallible, Failed> {
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
    Err(format!("could not restart the test program: {}", command.exec()).into())
}

/// Builds the simulated GPU with the cargo that runs the tests, because only cargo knows whether the library
/// is up to date. If it cannot be built, this program fails: the machine does not lack anything.
fn build_simulated_gpu() -> Result<PathBuf, Failed> {
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
        assert!(
            output.status.success(),
            "could not build simgpu:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let found = dirs.iter().rev().map(|dir| dir.join("libsimgpu.so")).find(|path| path.exists());
    found.ok_or_else(|| "there is neither a GPU nor libsimgpu.so; run `cargo build -p simgpu`".into())
}

/// Runs in a child process whose loader finds no driver.
fn without_a_driver_cuda_is_unavailable() -> Result<(), Failed> {
    const CHILD_VARIABLE: &str = "CUDA_TESTS_WITHOUT";
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return match cuda_device_count() {
            Err(error @ DeviceError::Unavailable { .. })
                if error.to_string().contains("no NVIDIA driver") =>
            {
                Ok(())
            }
            Ok(_) if Path::new("/dev/nvidiactl").exists() => Ok(()),
            other => Err(format!("{other:?}").into()),
        };
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "without_a_driver_cuda_is_unavailable"]);
    child.env_remove("LD_LIBRARY_PATH").env(CHILD_VARIABLE, "1").env(RESTARTED_VARIABLE, "1");
    let output = child.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).into()),
    }
}
