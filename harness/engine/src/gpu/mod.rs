//! The harness's side of the shim, the library that takes the place of the GPU driver for a target: where the
//! library is, whether it works here, and the directory through which the harness controls which calls fail.
//! Knows no scenario.
//!
//! The target finds the shim under the driver's own file names, through `LD_LIBRARY_PATH`. It needs no
//! change.

mod driver_probe;
mod error;
mod shim_library;
mod sys;

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use scenarios::CudaVersion;
use simgpu_plan::{Backend, DIRECTORY_VARIABLE, Evidence, FaultRule, GpuHealth, PlanDirectory, ShimPlan};

use crate::file_error::file_error;
use crate::locks::LockExt;

pub use driver_probe::{REAL_GPU, SIMULATED_GPU, doctor, run_probe_if_requested};
pub use error::GpuError;
pub use shim_library::find_shim_library;

/// File names under which programs load the libraries that the shim replaces. In front of a real driver,
/// programs keep the machine's own cublasLt.
const DRIVER_LIBRARIES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"];
const CUBLASLT_LIBRARIES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"];
/// Environment variable with the directories that the dynamic loader searches first.
pub const LIBRARY_PATH_VARIABLE: &str = "LD_LIBRARY_PATH";

/// The shim of one target. The harness writes its directory, and all processes of the target read it.
pub struct Shim {
    shared_dir: PlanDirectory,
    plan: Mutex<ShimPlan>,
    /// Number of evidence lines that have been searched for defects.
    examined_lines: Mutex<usize>,
}

impl Shim {
    /// Creates the directory, which must not exist yet, without any fault rules. `library` is the shim's
    /// library.
    ///
    /// # Errors
    /// If the directory or a file in it can't be created.
    pub fn create(path: &Path, library: &Path, backend: Backend) -> Result<Shim, GpuError> {
        let links = path.join("lib");
        std::fs::create_dir_all(&links).map_err(file_error::<GpuError>("create", &links))?;
        let is_simulated = matches!(backend, Backend::Simulated(_));
        let cublaslt: &[&str] = if is_simulated { &CUBLASLT_LIBRARIES } else { &[] };
        for name in DRIVER_LIBRARIES.iter().chain(cublaslt) {
            let link = links.join(name);
            std::os::unix::fs::symlink(library, &link).map_err(file_error::<GpuError>("link", &link))?;
        }
        let plan = ShimPlan { backend, health: GpuHealth::default(), rules: Vec::new() };
        let shared_dir = PlanDirectory::create(path, &plan)?;
        Ok(Shim { shared_dir, plan: Mutex::new(plan), examined_lines: Mutex::new(0) })
    }

    /// The environment variables that the target's processes need. `path`: where they see the directory.
    pub fn environment(&self, path: &Path) -> Vec<(OsString, OsString)> {
        vec![
            (LIBRARY_PATH_VARIABLE.into(), path.join("lib").into()),
            (DIRECTORY_VARIABLE.into(), path.into()),
        ]
    }

    fn lock_plan(&self) -> MutexGuard<'_, ShimPlan> {
        self.plan.locked()
    }

    /// Adds a rule. Returns its index, which identifies it in the other methods.
    ///
    /// # Errors
    /// If the plan can't be written.
    pub fn add_rule(&self, rule: FaultRule) -> Result<usize, GpuError> {
        let mut plan = self.lock_plan();
        plan.rules.push(rule);
        self.shared_dir.replace_plan(&plan)?;
        Ok(plan.rules.len() - 1)
    }

    /// Arms or disarms a rule. Calls are counted, and faults injected, only while it is armed.
    ///
    /// # Errors
    /// If the plan can't be written.
    pub fn set_armed(&self, rule_index: usize, armed: bool) -> Result<(), GpuError> {
        let mut plan = self.lock_plan();
        if let Some(rule) = plan.rules.get_mut(rule_index) {
            rule.armed = armed;
        }
        Ok(self.shared_dir.replace_plan(&plan)?)
    }

    /// Changes what the GPU is and what it reports about itself.
    ///
    /// # Errors
    /// If the plan can't be written.
    pub fn update(&self, change: impl FnOnce(&mut Backend, &mut GpuHealth)) -> Result<(), GpuError> {
        let mut plan = self.lock_plan();
        let ShimPlan { backend, health, .. } = &mut *plan;
        change(backend, health);
        Ok(self.shared_dir.replace_plan(&plan)?)
    }

    /// Makes a GPU that a rule has taken off the bus available again.
    pub fn restore_device(&self) {
        self.shared_dir.control().clear_lost();
    }

    /// Number of calls that matched the rule while it was armed.
    pub fn calls_seen(&self, rule_index: usize) -> u64 {
        self.shared_dir.control().calls_seen(rule_index)
    }

    /// What the rule has done so far.
    ///
    /// # Errors
    /// If the evidence can't be read.
    pub fn evidence_of(&self, rule_index: usize) -> Result<Vec<Evidence>, GpuError> {
        let mut evidence = self.shared_dir.read_evidence()?;
        evidence.retain(|entry| entry.rule == Some(rule_index));
        Ok(evidence)
    }

    /// Defects that the simulation has found by itself since the previous call, such as accesses out of
    /// bounds.
    ///
    /// # Errors
    /// If the evidence can't be read.
    pub fn take_new_gpu_defects(&self) -> Result<Vec<String>, GpuError> {
        let mut examined_lines = self.examined_lines.locked();
        let evidence = self.shared_dir.read_evidence()?;
        let new_entries = evidence.get(*examined_lines..).unwrap_or_default().iter();
        let defects = new_entries.filter(|entry| entry.rule.is_none());
        let defects = defects.map(|entry| format!("{} (process {})", entry.description, entry.pid)).collect();
        *examined_lines = evidence.len();
        Ok(defects)
    }
}

/// Weights of a version's numbers in `CUDA_VERSION` of cuda.h.
const MAJOR_FACTOR: u32 = 1000;
const MINOR_FACTOR: u32 = 10;

/// A version as CUDA encodes it: 12080 is 12.8.
pub fn cuda_version_number(version: CudaVersion) -> i32 {
    i32::try_from(version.major * MAJOR_FACTOR + version.minor * MINOR_FACTOR).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use simgpu_plan::{Persistence, RuleEffect, SimulatedMachine};

    use super::*;

    fn shim(dir: &Path, backend: Backend) -> Shim {
        let library = dir.join("libsimgpu.so");
        std::fs::write(&library, "").unwrap();
        Shim::create(&dir.join("gpu"), &library, backend).unwrap()
    }

    #[test]
    fn a_real_gpu_keeps_its_own_cublaslt_and_a_simulated_one_gets_the_shims() {
        let dir = tempfile::tempdir().unwrap();
        let real = Backend::Forwarded { libcuda: None, libnvidia_ml: None };
        let _gpu = shim(dir.path(), real);
        let has = |dir: &Path, name: &str| dir.join("gpu/lib").join(name).exists();
        assert!(has(dir.path(), "libcuda.so.1") && !has(dir.path(), "libcublasLt.so"));
        let other = tempfile::tempdir().unwrap();
        let _gpu = shim(other.path(), Backend::Simulated(SimulatedMachine::default()));
        assert!(has(other.path(), "libcuda.so") && has(other.path(), "libcublasLt.so.12"));
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
        let rule_index = gpu.add_rule(rule).unwrap();
        assert!(!target.read_plan().unwrap().rules[rule_index].armed);
        gpu.set_armed(rule_index, true).unwrap();
        gpu.update(|_, health| health.temperature_c = Some(95)).unwrap();
        let plan = target.read_plan().unwrap();
        assert!(plan.rules[rule_index].armed && plan.health.temperature_c == Some(95));
        target.control().count_call(rule_index);
        assert_eq!(gpu.calls_seen(rule_index), 1);
    }

    #[test]
    fn a_gpu_defect_is_returned_once_and_a_rules_effect_is_not_a_defect() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = shim(dir.path(), Backend::Simulated(SimulatedMachine::default()));
        let target = PlanDirectory::open(&dir.path().join("gpu")).unwrap();
        let record = |rule, description: &str| {
            target.record_evidence(&Evidence { rule, pid: 7, description: description.into() }).unwrap()
        };
        record(None, "out of bounds");
        record(Some(0), "launch 3 failed");
        assert_eq!(gpu.take_new_gpu_defects().unwrap(), ["out of bounds (process 7)"]);
        assert!(gpu.take_new_gpu_defects().unwrap().is_empty());
        assert_eq!(gpu.evidence_of(0).unwrap().len(), 1);
    }
}
