//! The stand-in for the GPU's driver, as the harness holds it: where its library is, whether it works here, and the folder by which one
//! target's GPU is told how to fail. Knows no scenario and no fault.
//!
//! The target finds the library under the driver's own names, through `LD_LIBRARY_PATH`; it is not changed and not told.

mod driver_probe;
mod shim_library;
mod sys;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use scenarios::CudaVersion;
use simgpu_plan::{
    Backend, DIRECTORY_VARIABLE, Evidence, FaultRule, GpuHealth, PlanDirectory, PlanError, ShimPlan,
};

pub use driver_probe::{REAL_GPU, SIMULATED_GPU, doctor, run_probe_if_requested};
pub use shim_library::find_shim_library;

/// Names under which programs ask for what the library stands in for. In front of a real driver cublasLt is the machine's own.
const DRIVER_LIBRARIES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"];
const CUBLASLT_LIBRARIES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"];
/// Variable by which the loader is told where to look first.
pub const LIBRARY_PATH_VARIABLE: &str = "LD_LIBRARY_PATH";

/// Why a target can't be given a GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
}

/// The GPU of one target: a folder that the harness writes and all processes of the target read.
pub struct Shim {
    shared_dir: PlanDirectory,
    path: PathBuf,
    lock_plan: Mutex<ShimPlan>,
    /// Lines of evidence that have been looked at for findings.
    examined_lines: Mutex<usize>,
}

impl Shim {
    /// Makes it in a folder that does not exist yet, with nothing that fails.
    pub fn create(path: &Path, library: &Path, machine: Backend) -> Result<Shim, GpuError> {
        let links = path.join("lib");
        std::fs::create_dir_all(&links).map_err(file_error("create", &links))?;
        let simulated = matches!(machine, Backend::Simulated(_));
        let maths: &[&str] = if simulated { &CUBLASLT_LIBRARIES } else { &[] };
        for name in DRIVER_LIBRARIES.iter().chain(maths) {
            let link = links.join(name);
            std::os::unix::fs::symlink(library, &link).map_err(file_error("link", &link))?;
        }
        let plan = ShimPlan { backend: machine, health: GpuHealth::default(), rules: Vec::new() };
        let folder = PlanDirectory::create(path, &plan)?;
        Ok(Shim {
            shared_dir: folder,
            path: path.into(),
            lock_plan: Mutex::new(plan),
            examined_lines: Mutex::new(0),
        })
    }

    /// What the target's processes need in their environment.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            (LIBRARY_PATH_VARIABLE.into(), self.path.join("lib").into()),
            (DIRECTORY_VARIABLE.into(), self.path.clone().into()),
        ]
    }

    fn lock_plan(&self) -> MutexGuard<'_, ShimPlan> {
        self.lock_plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more rule; by its number it is known from then on.
    pub fn add_rule(&self, rule: FaultRule) -> Result<usize, GpuError> {
        let mut plan = self.lock_plan();
        plan.rules.push(rule);
        self.shared_dir.replace_plan(&plan)?;
        Ok(plan.rules.len() - 1)
    }

    /// From now on calls are counted, and struck at; or no longer.
    pub fn set_armed(&self, rule: usize, armed: bool) -> Result<(), GpuError> {
        let mut plan = self.lock_plan();
        if let Some(rule) = plan.rules.get_mut(rule) {
            rule.armed = armed;
        }
        Ok(self.shared_dir.replace_plan(&plan)?)
    }

    /// What the GPU is and tells of itself is changed.
    pub fn update(&self, change: impl FnOnce(&mut Backend, &mut GpuHealth)) -> Result<(), GpuError> {
        let mut plan = self.lock_plan();
        let ShimPlan { backend: machine, health: state, .. } = &mut *plan;
        change(machine, state);
        Ok(self.shared_dir.replace_plan(&plan)?)
    }

    /// A GPU that a rule has made fall off the bus is back.
    pub fn restore_device(&self) {
        self.shared_dir.control().clear_lost();
    }

    /// Calls that the rule speaks of, since it was armed.
    pub fn calls_seen(&self, rule: usize) -> u64 {
        self.shared_dir.control().calls_seen(rule)
    }

    /// What the rule has done so far.
    pub fn evidence_of(&self, rule: usize) -> Result<Vec<Evidence>, GpuError> {
        let mut evidence = self.shared_dir.read_evidence()?;
        evidence.retain(|one| one.rule == Some(rule));
        Ok(evidence)
    }

    /// What the simulation has found by itself since it was last asked.
    pub fn take_new_gpu_defects(&self) -> Result<Vec<String>, GpuError> {
        let mut looked_at = self.examined_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let evidence = self.shared_dir.read_evidence()?;
        let fresh = evidence.get(*looked_at..).unwrap_or_default().iter();
        let found = fresh.filter(|one| one.rule.is_none());
        let found = found.map(|one| format!("{} (process {})", one.description, one.pid)).collect();
        *looked_at = evidence.len();
        Ok(found)
    }
}

/// As CUDA writes it: 12080 is 12.8.
pub fn cuda_version_number(version: CudaVersion) -> i32 {
    i32::try_from(version.major * 1000 + version.minor * 10).unwrap_or(i32::MAX)
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GpuError {
    let path = path.to_path_buf();
    move |error| GpuError::File { doing, path, error }
}

#[cfg(test)]
mod tests {
    use simgpu_plan::{Persistence, RuleEffect, SimulatedMachine};

    use super::*;

    fn shim(dir: &Path, machine: Backend) -> Shim {
        let library = dir.join("libsimgpu.so");
        std::fs::write(&library, "").unwrap();
        Shim::create(&dir.join("gpu"), &library, machine).unwrap()
    }

    #[test]
    fn a_real_gpu_keeps_its_own_cublaslt_and_a_simulated_one_gets_the_shims() {
        let dir = tempfile::tempdir().unwrap();
        let real = Backend::Forwarded { libcuda: None, libnvidia_ml: None };
        let gpu = shim(dir.path(), real);
        let has = |gpu: &Shim, name: &str| gpu.path.join("lib").join(name).exists();
        assert!(has(&gpu, "libcuda.so.1") && !has(&gpu, "libcublasLt.so"));
        let other = tempfile::tempdir().unwrap();
        let gpu = shim(other.path(), Backend::Simulated(SimulatedMachine::default()));
        assert!(has(&gpu, "libcuda.so") && has(&gpu, "libcublasLt.so.12"));
    }

    #[test]
    fn the_target_sees_armed_rules_and_changed_state() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = shim(dir.path(), Backend::Simulated(SimulatedMachine::default()));
        let target = PlanDirectory::open(&dir.path().join("gpu")).unwrap();
        let rule = FaultRule {
            armed: false,
            calls: Default::default(),
            nth: 1,
            persistence: Persistence::Transient,
            effect: RuleEffect::Count,
        };
        let number = gpu.add_rule(rule).unwrap();
        assert!(!target.read_plan().unwrap().rules[number].armed);
        gpu.set_armed(number, true).unwrap();
        gpu.update(|_, state| state.temperature_c = Some(95)).unwrap();
        let read = target.read_plan().unwrap();
        assert!(read.rules[number].armed && read.health.temperature_c == Some(95));
        target.control().count_call(number);
        assert_eq!(gpu.calls_seen(number), 1);
    }

    #[test]
    fn a_gpu_defect_is_returned_once_and_a_rules_effect_is_not_a_defect() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = shim(dir.path(), Backend::Simulated(SimulatedMachine::default()));
        let target = PlanDirectory::open(&dir.path().join("gpu")).unwrap();
        let tell = |rule, what: &str| {
            target.record_evidence(&Evidence { rule, pid: 7, description: what.into() }).unwrap()
        };
        tell(None, "out of bounds");
        tell(Some(0), "launch 3 failed");
        assert_eq!(gpu.take_new_gpu_defects().unwrap(), ["out of bounds (process 7)"]);
        assert!(gpu.take_new_gpu_defects().unwrap().is_empty());
        assert_eq!(gpu.evidence_of(0).unwrap().len(), 1);
    }
}
