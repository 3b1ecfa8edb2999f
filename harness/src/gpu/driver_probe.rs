//! Whether this machine can give a target a GPU, simulated or real, found by trying it in a process of its own: what a library does when it
//! is loaded is its own affair.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use scenarios::Mechanism;

use super::{find_shim_library, sys};

/// Names of the mechanisms.
pub const SIMULATED_GPU: &str = "simulated-gpu";
pub const REAL_GPU: &str = "real-gpu";
/// First argument with which our own binary tries a library.
const PROBE_ARGUMENT: &str = "__probe-gpu";
/// The library under which the loader knows the real driver.
const DRIVER_LIBRARY: &str = "libcuda.so.1";
/// A driver may take long to wake a card up.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Tries both.
pub fn doctor() -> Vec<Mechanism> {
    let library = find_shim_library().map_err(|error| error.to_string());
    let simulated = library.as_deref().map_err(Clone::clone).and_then(|path| run_probe(SIMULATED_GPU, path));
    // The stand-in has to be there to stand in front of the driver.
    let real = library.and_then(|_| run_probe(REAL_GPU, Path::new(DRIVER_LIBRARY)));
    vec![mechanism(SIMULATED_GPU, simulated), mechanism(REAL_GPU, real)]
}

fn mechanism(name: &str, found: Result<String, String>) -> Mechanism {
    let granted = found.is_ok();
    let (Ok(detail) | Err(detail)) = found;
    // The first line says it; a failed build says much more.
    let detail = detail.lines().next().unwrap_or_default().to_owned();
    Mechanism { name: name.into(), granted, detail }
}

/// Starts our own binary anew; its one line says what it found.
fn run_probe(what: &str, library: &Path) -> Result<String, String> {
    let mut child = Command::new("/proc/self/exe")
        .args([PROBE_ARGUMENT, what])
        .arg(library)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("could not start a probe: {error}"))?;
    let until = Instant::now() + PROBE_TIMEOUT;
    while child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() > until {
            // It is reaped by the call below.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|error| format!("could not read the probe: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(said),
        false if said.is_empty() => {
            Err(format!("the probe of `{}` ended with {}", library.display(), output.status))
        }
        false => Err(said),
    }
}

/// To be called first thing in `main`: where this process was started as a probe, it says what it finds and has ended.
#[expect(
    clippy::print_stdout,
    reason = "a probe's one line is its answer to the harness, not a word for people"
)]
pub fn run_probe_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != PROBE_ARGUMENT {
        return None;
    }
    let (what, library) = (arguments.next()?, arguments.next()?);
    let found = if what == SIMULATED_GPU {
        probe_simulated(Path::new(&library))
    } else {
        probe_real(Path::new(&library))
    };
    let code = if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let (Ok(said) | Err(said)) = found;
    println!("{said}");
    Some(code)
}

fn probe_simulated(path: &Path) -> Result<String, String> {
    let library = sys::LoadedLibrary::open(path)?;
    match library.kernel_count() {
        Some(count @ 1..) => {
            Ok(format!("a stand-in for the driver, with {count} kernels compiled for the CPU"))
        }
        Some(_) => {
            Err(library.missing_kernels_reason().unwrap_or_else(|| "the stand-in has no kernels".into()))
        }
        None => Err(format!("`{}` is not the stand-in's library", path.display())),
    }
}

fn probe_real(path: &Path) -> Result<String, String> {
    let no_driver = "no NVIDIA driver on this machine; install one, with a card";
    let library = sys::LoadedLibrary::open(path).map_err(|error| format!("{no_driver} ({error})"))?;
    if library.kernel_count().is_some() {
        return Err("the only libcuda found is the stand-in itself; take it out of LD_LIBRARY_PATH".into());
    }
    match library.device_count()? {
        0 => Err("the driver works and sees no GPU".into()),
        count => Ok(format!("{count} devices behind the machine's own driver")),
    }
}
