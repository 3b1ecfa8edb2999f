//! Finds out whether this machine can provide a GPU, simulated or real. It loads the libraries in a separate
//! process, so that a library that crashes or hangs while loading does not affect the harness.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use scenarios::Mechanism;

use super::shim_library::find_shim_library;
use super::sys::{LibraryError, LoadedLibrary};
use crate::file_error::chain;
use crate::target::OnBuild;

/// Name of the mechanism that provides a simulated GPU.
pub const SIMULATED_GPU: &str = "simulated-gpu";
/// Name of the mechanism that provides a real GPU.
pub const REAL_GPU: &str = "real-gpu";
/// First argument that makes our own binary run as a probe.
const PROBE_ARGUMENT: &str = "__probe-gpu";
/// File name of the real driver's library.
const DRIVER_LIBRARY: &str = "libcuda.so.1";
/// How long a probe may take. A driver can take many seconds to initialise a GPU.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a probe found no GPU.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// The probe's process could not be started.
    #[error("could not start a probe")]
    NotStarted { source: std::io::Error },
    /// The output of the probe's process could not be read.
    #[error("could not read the output of a probe")]
    Output { source: std::io::Error },
    /// The probe's process ended without a result.
    #[error("the probe of `{library}` ended with {status}", library = .library.display())]
    Ended { library: PathBuf, status: ExitStatus },
    /// The search for the shim's library, or the probe's process, gave this reason.
    #[error("{reason}")]
    Reported { reason: String },
    /// The library could not be loaded or used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The shim has no kernels, for this reason.
    #[error("{reason}")]
    NoKernels { reason: String },
    /// The library is not the shim.
    #[error("`{library}` is not the shim's library", library = .library.display())]
    NotTheShim { library: PathBuf },
    /// There is no driver: the loader's error.
    #[error(
        "no NVIDIA driver on this machine; use a machine with an NVIDIA GPU and its driver ({loader_error})"
    )]
    NoDriver { loader_error: LibraryError },
    /// In place of the driver, the loader found the shim.
    #[error("the only libcuda found is the shim itself; remove its directory from LD_LIBRARY_PATH")]
    OnlyTheShim,
    /// The driver works, but has no devices.
    #[error("the driver works, but finds no GPU")]
    NoDevice,
}

/// Probes the simulated and the real GPU. Builds the shim's library first, if it can.
pub fn doctor(on_build: OnBuild<'_>) -> Vec<Mechanism> {
    let (simulated, real) = match find_shim_library(on_build) {
        // A real GPU is also used through the shim, so it needs the shim's library too.
        Ok(path) => (run_probe(SIMULATED_GPU, &path), run_probe(REAL_GPU, Path::new(DRIVER_LIBRARY))),
        Err(error) => {
            let reason = chain(&error);
            let refused = || Err(ProbeError::Reported { reason: reason.clone() });
            (refused(), refused())
        }
    };
    vec![mechanism(SIMULATED_GPU, simulated), mechanism(REAL_GPU, real)]
}

fn mechanism(name: &str, probed: Result<String, ProbeError>) -> Mechanism {
    let granted = probed.is_ok();
    let detail = probed.unwrap_or_else(|error| chain(&error));
    // The first line is enough. The output of a failed build has many more.
    let detail = detail.lines().next().unwrap_or_default().to_owned();
    Mechanism { name: name.into(), granted, detail }
}

/// Starts our own binary as a probe. Its exit code and its one line of output are the result.
fn run_probe(mechanism: &str, library: &Path) -> Result<String, ProbeError> {
    let mut child = Command::new("/proc/self/exe")
        .args([PROBE_ARGUMENT, mechanism])
        .arg(library)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ProbeError::NotStarted { source })?;
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if Instant::now() > deadline {
            // `wait_with_output` below reaps it.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|source| ProbeError::Output { source })?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(printed),
        false if printed.is_empty() => {
            Err(ProbeError::Ended { library: library.into(), status: output.status })
        }
        false => Err(ProbeError::Reported { reason: printed }),
    }
}

/// Runs the probe and returns its exit code, if this process was started as one. `main` must call it before
/// anything else.
#[expect(
    clippy::print_stdout,
    reason = "a probe's one line of output is its result for the harness, not text for people"
)]
pub fn run_probe_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != PROBE_ARGUMENT {
        return None;
    }
    let (mechanism, library) = (arguments.next()?, arguments.next()?);
    let probed = if mechanism == SIMULATED_GPU {
        probe_simulated(Path::new(&library))
    } else {
        probe_real(Path::new(&library))
    };
    let code = if probed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let detail = probed.unwrap_or_else(|error| chain(&error));
    println!("{detail}");
    Some(code)
}

fn probe_simulated(path: &Path) -> Result<String, ProbeError> {
    let library = LoadedLibrary::open(path)?;
    match library.kernel_count() {
        Some(count @ 1..) => {
            Ok(format!("a shim in place of the driver, with {count} kernels compiled for the CPU"))
        }
        Some(_) => {
            let reason = library.missing_kernels_reason();
            Err(ProbeError::NoKernels {
                reason: reason.unwrap_or_else(|| "the shim was built without kernels".into()),
            })
        }
        None => Err(ProbeError::NotTheShim { library: path.into() }),
    }
}

fn probe_real(path: &Path) -> Result<String, ProbeError> {
    let library = LoadedLibrary::open(path).map_err(|loader_error| ProbeError::NoDriver { loader_error })?;
    if library.kernel_count().is_some() {
        return Err(ProbeError::OnlyTheShim);
    }
    match library.device_count()? {
        0 => Err(ProbeError::NoDevice),
        1 => Ok("the machine's own driver, with 1 GPU".into()),
        count => Ok(format!("the machine's own driver, with {count} GPUs")),
    }
}
