//! The card's arithmetic and the engine on it, against the CPU's: on a real card where there is one, else on the simulated
//! one, for which the test program starts itself once more. `SEED` chooses the random inputs; the seed is always printed.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]
#![expect(clippy::print_stderr, reason = "a test says what it skips")]

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

/// Set in the process that was started once more.
const RESTARTED_VARIABLE: &str = "CUDA_TESTS_SIMULATED";
const LIBRARY_NAMES: [&str; 6] = [
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnvidia-ml.so",
    "libnvidia-ml.so.1",
];

type TestCase = (&'static str, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_again = std::env::var_os(RESTARTED_VARIABLE).is_some();
    let why = match check_device() {
        Ok(()) => None,
        Err(_) if !is_again && !arguments.list => match restart_with_simulated_gpu() {
            Ok(never) => match never {},
            Err(why) => Some(why),
        },
        Err(why) => Some(why),
    };
    if let Some(why) = &why {
        eprintln!("skipped: {why}");
    }
    let mut trials = vec![Trial::test("without_a_driver_cuda_is_missing", || Ok(without_a_driver()?))];
    for (name, test) in kernels::TESTS.iter().chain(attention::TESTS).chain(model::TESTS).chain(engine::TESTS)
    {
        let trial = Trial::test(*name, move || {
            test();
            Ok(())
        });
        trials.push(trial.with_ignored_flag(why.is_some()));
    }
    // One after another: they share one card, whose memory some of them measure.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether there is a card that our kernels run on.
fn check_device() -> Result<(), String> {
    match (cuda_device_count(), sys::simulated_kernel_count()) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(0), _) => Err("there is no CUDA device".to_owned()),
        (Ok(_), Some(0)) => {
            Err("the simulated GPU was built without kernels: is there a C++ compiler?".to_owned())
        }
        (Ok(_), _) => Ok(()),
    }
}

/// Puts the simulated driver's library where the loader looks, and starts this program again. Returns if it can't.
fn restart_with_simulated_gpu() -> Result<std::convert::Infallible, String> {
    let library = build_simulated_gpu()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
    let failed = |error: std::io::Error| format!("could not link `{}`: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for name in LIBRARY_NAMES {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        drop(std::fs::remove_file(&link));
        std::os::unix::fs::symlink(&library, &link).map_err(failed)?;
    }
    let program = std::env::current_exe().map_err(|error| format!("no own path: {error}"))?;
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).env("LD_LIBRARY_PATH", &folder).env(RESTARTED_VARIABLE, "1");
    Err(format!("could not start again: {}", again.exec()))
}

/// Built anew by the cargo that runs the tests: it knows best whether anything has changed.
fn build_simulated_gpu() -> Result<PathBuf, String> {
    let own = std::env::current_exe().unwrap();
    let folders: Vec<&Path> = own.ancestors().skip(1).take(2).collect();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut build = Command::new(cargo);
        build.current_dir(workspace).args(["build", "--quiet", "-p", "simgpu"]);
        if folders.iter().any(|folder| folder.ends_with("release")) {
            build.arg("--release");
        }
        let output = build.output().map_err(|error| format!("could not start cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("simgpu was not built:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let found = folders.iter().rev().map(|folder| folder.join("libsimgpu.so")).find(|path| path.exists());
    found.ok_or_else(|| "there is neither a card nor libsimgpu.so; run `cargo build -p simgpu`".to_owned())
}

/// In a process of its own, whose loader finds none.
fn without_a_driver() -> Result<(), String> {
    const ASKED: &str = "CUDA_TESTS_WITHOUT";
    if std::env::var_os(ASKED).is_some() {
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
    child.args(["--exact", "without_a_driver_cuda_is_missing"]);
    child.env_remove("LD_LIBRARY_PATH").env(ASKED, "1").env(RESTARTED_VARIABLE, "1");
    let output = child.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}
