//! The stand-in for the GPU's driver, as the harness holds it: where its library is, whether it works here, and the folder by which one
//! target's GPU is told how to fail. Knows no scenario and no fault.
//!
//! The target finds the library under the driver's own names, through `LD_LIBRARY_PATH`; it is not changed and not told.

mod doctor;
mod library;
mod sys;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use scenarios::CudaVersion;
use simgpu_plan::{Evidence, FOLDER, Folder, Machine, Plan, PlanError, Rule, State};

pub use doctor::{REAL, SIMULATED, doctor, probe_if_asked};
pub use library::find_library;

/// Names under which programs ask for what the library stands in for. In front of a real driver cublasLt is the machine's own.
const DRIVER: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"];
const MATHS: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.12", "libcublasLt.so.13"];
/// Variable by which the loader is told where to look first.
pub const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Why a target can't be given a GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
}

/// The GPU of one target: a folder that the harness writes and all processes of the target read.
pub struct StandIn {
    folder: Folder,
    path: PathBuf,
    plan: Mutex<Plan>,
    /// Lines of evidence that have been looked at for findings.
    looked_at: Mutex<usize>,
}

impl StandIn {
    /// Makes it in a folder that does not exist yet, with nothing that fails.
    pub fn create(path: &Path, library: &Path, machine: Machine) -> Result<StandIn, GpuError> {
        let links = path.join("lib");
        std::fs::create_dir_all(&links).map_err(file("create", &links))?;
        let simulated = matches!(machine, Machine::Simulated(_));
        let maths: &[&str] = if simulated { &MATHS } else { &[] };
        for name in DRIVER.iter().chain(maths) {
            let link = links.join(name);
            std::os::unix::fs::symlink(library, &link).map_err(file("link", &link))?;
        }
        let plan = Plan { machine, state: State::default(), rules: Vec::new() };
        let folder = Folder::create(path, &plan)?;
        Ok(StandIn { folder, path: path.into(), plan: Mutex::new(plan), looked_at: Mutex::new(0) })
    }

    /// What the target's processes need in their environment.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![(LIBRARY_PATH.into(), self.path.join("lib").into()), (FOLDER.into(), self.path.clone().into())]
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more rule; by its number it is known from then on.
    pub fn add(&self, rule: Rule) -> Result<usize, GpuError> {
        let mut plan = self.plan();
        plan.rules.push(rule);
        self.folder.replace_plan(&plan)?;
        Ok(plan.rules.len() - 1)
    }

    /// From now on calls are counted, and struck at; or no longer.
    pub fn arm(&self, rule: usize, armed: bool) -> Result<(), GpuError> {
        let mut plan = self.plan();
        if let Some(rule) = plan.rules.get_mut(rule) {
            rule.armed = armed;
        }
        Ok(self.folder.replace_plan(&plan)?)
    }

    /// What the GPU is and tells of itself is changed.
    pub fn change(&self, change: impl FnOnce(&mut Machine, &mut State)) -> Result<(), GpuError> {
        let mut plan = self.plan();
        let Plan { machine, state, .. } = &mut *plan;
        change(machine, state);
        Ok(self.folder.replace_plan(&plan)?)
    }

    /// A GPU that a rule has made fall off the bus is back.
    pub fn put_back(&self) {
        self.folder.control().put_back();
    }

    /// Calls that the rule speaks of, since it was armed.
    pub fn seen(&self, rule: usize) -> u64 {
        self.folder.control().seen(rule)
    }

    /// What the rule has done so far.
    pub fn done_by(&self, rule: usize) -> Result<Vec<Evidence>, GpuError> {
        let mut evidence = self.folder.evidence()?;
        evidence.retain(|one| one.rule == Some(rule));
        Ok(evidence)
    }

    /// What the simulation has found by itself since it was last asked.
    pub fn fresh_findings(&self) -> Result<Vec<String>, GpuError> {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let evidence = self.folder.evidence()?;
        let fresh = evidence.get(*looked_at..).unwrap_or_default().iter();
        let found = fresh.filter(|one| one.rule.is_none());
        let found = found.map(|one| format!("{} (process {})", one.what, one.pid)).collect();
        *looked_at = evidence.len();
        Ok(found)
    }
}

/// As CUDA writes it: 12080 is 12.8.
pub fn version_number(version: CudaVersion) -> i32 {
    i32::try_from(version.major * 1000 + version.minor * 10).unwrap_or(i32::MAX)
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GpuError {
    let path = path.to_path_buf();
    move |error| GpuError::File { doing, path, error }
}

#[cfg(test)]
mod tests {
    use simgpu_plan::{Effect, Simulated, Strike};

    use super::*;

    fn stand_in(dir: &Path, machine: Machine) -> StandIn {
        let library = dir.join("libsimgpu.so");
        std::fs::write(&library, "").unwrap();
        StandIn::create(&dir.join("gpu"), &library, machine).unwrap()
    }

    #[test]
    fn a_real_gpu_keeps_its_own_maths_and_a_simulated_one_has_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let real = Machine::Forwarded { libcuda: None, libnvidia_ml: None };
        let gpu = stand_in(dir.path(), real);
        let has = |gpu: &StandIn, name: &str| gpu.path.join("lib").join(name).exists();
        assert!(has(&gpu, "libcuda.so.1") && !has(&gpu, "libcublasLt.so"));
        let other = tempfile::tempdir().unwrap();
        let gpu = stand_in(other.path(), Machine::Simulated(Simulated::default()));
        assert!(has(&gpu, "libcuda.so") && has(&gpu, "libcublasLt.so.12"));
    }

    #[test]
    fn what_the_target_reads_follows_what_is_armed_and_changed() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = stand_in(dir.path(), Machine::Simulated(Simulated::default()));
        let target = Folder::open(&dir.path().join("gpu")).unwrap();
        let rule = Rule {
            armed: false,
            calls: Default::default(),
            nth: 1,
            strike: Strike::Once,
            effect: Effect::Count,
        };
        let number = gpu.add(rule).unwrap();
        assert!(!target.plan().unwrap().rules[number].armed);
        gpu.arm(number, true).unwrap();
        gpu.change(|_, state| state.temperature_c = Some(95)).unwrap();
        let read = target.plan().unwrap();
        assert!(read.rules[number].armed && read.state.temperature_c == Some(95));
        target.control().count(number);
        assert_eq!(gpu.seen(number), 1);
    }

    #[test]
    fn a_finding_is_told_once_and_what_a_rule_did_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = stand_in(dir.path(), Machine::Simulated(Simulated::default()));
        let target = Folder::open(&dir.path().join("gpu")).unwrap();
        let tell = |rule, what: &str| target.tell(&Evidence { rule, pid: 7, what: what.into() }).unwrap();
        tell(None, "out of bounds");
        tell(Some(0), "launch 3 failed");
        assert_eq!(gpu.fresh_findings().unwrap(), ["out of bounds (process 7)"]);
        assert!(gpu.fresh_findings().unwrap().is_empty());
        assert_eq!(gpu.done_by(0).unwrap().len(), 1);
    }
}
