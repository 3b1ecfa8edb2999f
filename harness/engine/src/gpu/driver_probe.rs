//! Finds out whether this machine can provide a GPU, simulated or real. It loads the libraries in a separate
//! process, so that a library that crashes or hangs while loading does not affect the harness.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use scenarios::Mechanism;

use super::{find_shim_library, sys};

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

/// Probes the simulated and the real GPU.
pub fn doctor() -> Vec<Mechanism> {
    let library = find_shim_library().map_err(|error| error.to_string());
    let simulated = library.as_deref().map_err(Clone::clone).and_then(|path| run_probe(SIMULATED_GPU, path));
    // A real GPU is also used through the shim, so it needs the shim's library too.
    let real = library.and_then(|_| run_probe(REAL_GPU, Path::new(DRIVER_LIBRARY)));
    vec![mechanism(SIMULATED_GPU, simulated), mechanism(REAL_GPU, real)]
}

fn mechanism(name: &str, probed: Result<String, String>) -> Mechanism {
    let granted = probed.is_ok();
    let (Ok(detail) | Err(detail)) = probed;
    // The first line is enough. The output of a failed build has many more.
    let detail = detail.lines().next().unwrap_or_default().to_owned();
    Mechanism { name: name.into(), granted, detail }
}

/// Starts our own binary as a probe. Its exit code and its one line of output are the result.
fn run_probe(mechanism: &str, library: &Path) -> Result<String, String> {
    let mut child = Command::new("/proc/self/exe")
        .args([PROBE_ARGUMENT, mechanism])
        .arg(library)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("could not start a probe: {error}"))?;
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if Instant::now() > deadline {
            // `wait_with_output` below reaps it.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output =
        child.wait_with_output().map_err(|error| format!("could not read the output of a probe: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(printed),
        false if printed.is_empty() => {
            Err(format!("the probe of `{}` ended with {}", library.display(), output.status))
        }
        false => Err(printed),
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
    let (Ok(detail) | Err(detail)) = probed;
    println!("{detail}");
    Some(code)
}

fn probe_simulated(path: &Path) -> Result<String, String> {
    let library = sys::LoadedLibrary::open(path)?;
    match library.kernel_count() {
        Some(count @ 1..) => {
            Ok(format!("a shim in place of the driver, with {count} kernels compiled for the CPU"))
        }
        Some(_) => Err(library
            .missing_kernels_reason()
            .unwrap_or_else(|| "the shim was built without kernels".into())),
        None => Err(format!("`{}` is not the shim's library", path.display())),
    }
}

fn probe_real(path: &Path) -> Result<String, String> {
    let no_driver = "no NVIDIA driver on this machine; use a machine with an NVIDIA GPU and its driver";
    let library = sys::LoadedLibrary::open(path).map_err(|error| format!("{no_driver} ({error})"))?;
    if library.kernel_count().is_some() {
        return Err(
            "the only libcuda found is the shim itself; remove its directory from LD_LIBRARY_PATH".into()
        );
    }
    match library.device_count()? {
        0 => Err("the driver works, but finds no GPU".into()),
        count => Ok(format!("the machine's own driver, with {count} devices")),
    }
}
