//! How a GPU is to fail, and what became of it: the files of one folder that the harness and the stand-in share.
//!
//! `plan.json` is written by the harness, replaced as a whole; `control` is mapped into the harness and into every process of
//! the target, so that a rule counts calls across all of them; `evidence.jsonl` gets a line for each thing that was done.
//! Knows no scenario and no driver.

mod control;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use control::{ControlFile, MAX_RULES, MAX_XIDS};

/// Environment variable that names the folder.
pub const DIRECTORY_VARIABLE: &str = "TRAINWRECK_GPU";
const PLAN_FILE: &str = "plan.json";
const CONTROL_FILE: &str = "control";
const EVIDENCE_FILE: &str = "evidence.jsonl";

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("`{path}`: {message}", path = .path.display())]
    Invalid { path: PathBuf, message: String },
}

/// What the GPU is, and how it fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ShimPlan {
    pub backend: Backend,
    pub health: GpuHealth,
    /// At most [`RULES_MOST`]; a rule is known by its index.
    pub rules: Vec<FaultRule>,
}

/// Where the calls end up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Backend {
    Simulated(SimulatedMachine),
    /// The real libraries; where no path is given, the first one of its name that the loader finds beside the stand-in.
    Forwarded {
        libcuda: Option<PathBuf>,
        libnvidia_ml: Option<PathBuf>,
    },
}

/// A simulated machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SimulatedMachine {
    pub devices: u32,
    /// Of each device.
    pub memory_bytes: u64,
    /// CUDA version that the driver supports: 12080 is 12.8.
    pub driver_version: i32,
    pub compute_capability: (i32, i32),
}

impl Default for SimulatedMachine {
    fn default() -> SimulatedMachine {
        SimulatedMachine {
            devices: 1,
            memory_bytes: 1 << 30,
            driver_version: 12_080,
            compute_capability: (9, 0),
        }
    }
}

/// What NVML tells beside what the rules have brought about. Of every device.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct GpuHealth {
    /// Off the bus: new contexts find no device, calls in old ones fail, NVML says that the GPU is lost.
    pub lost: bool,
    pub temperature_c: Option<u32>,
    pub throttled: Vec<ClockThrottleReason>,
    /// Added to the volatile and aggregate counts.
    pub ecc_corrected: u64,
    pub ecc_uncorrected: u64,
    /// In order; each is delivered once to each process that listens.
    pub xids: Vec<u64>,
}

/// Why clocks are held down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockThrottleReason {
    /// Hardware thermal slowdown.
    Thermal,
    /// Software power cap.
    PowerCap,
    /// Hardware power brake.
    PowerBrake,
}

/// At which call, and what happens there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FaultRule {
    /// Calls are counted, and struck at, only while it is armed.
    pub armed: bool,
    pub calls: CallFilter,
    /// The n-th call since it was armed first, 1-based, over all processes.
    pub nth: u64,
    pub persistence: Persistence,
    pub effect: RuleEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Persistence {
    /// At that call only, in whichever process it comes.
    Transient,
    /// At each from that call on.
    Persistent,
}

/// Which calls of the driver.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct CallFilter {
    /// None: all kinds.
    pub kinds: Vec<DriverCallKind>,
    /// Glob on the function's name, such as `cuMemAlloc*`.
    pub function: Option<String>,
    /// Glob on the kernel's name; for launches. On a real driver, known for kernels that were got by name.
    pub kernel: Option<String>,
    /// For allocations and copies: at least so many bytes.
    pub min_bytes: u64,
}

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverCallKind {
    Initialise,
    LoadModule,
    Launch,
    Allocate,
    Free,
    Copy,
    /// Waits for a stream, an event or a context.
    Synchronise,
    Other,
}

/// When an error is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorTiming {
    Immediately,
    /// By the next call that waits, as errors of kernels are.
    AtNextSync,
}

/// What happens at the call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RuleEffect {
    /// Nothing: calls are counted.
    Count,
    /// `code`: a `CUresult`. Sticky: every later call of the process fails likewise, as when a context is lost.
    /// What NVML tells follows: an uncorrectable ECC error counts one and delivers XID 48, no device is a lost GPU and XID 79.
    Fail { code: u32, reported: ErrorTiming, sticky: bool },
    /// The kernel of this launch never ends: whoever waits for it waits forever. On a real driver: the call never returns.
    Hang,
    /// Simulated only. One value of the first buffer that the launch wrote to; `seed` decides which.
    Overwrite { with: OverwriteValue, seed: u64 },
    /// Simulated only. One bit of the largest allocation there is; `seed` decides which.
    FlipBit { seed: u64 },
    /// Simulated only. What is free is left in holes of at most so many bytes, as other users of the memory would.
    Fragment { hole_bytes: u64 },
}

/// What a value becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverwriteValue {
    Nan,
    /// Finite, and far from right.
    Wrong,
}

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    /// None: found by the simulation itself, such as an access out of bounds.
    pub rule: Option<usize>,
    pub pid: u32,
    pub description: String,
}

/// The folder, opened.
pub struct PlanDirectory {
    path: PathBuf,
    control: ControlFile,
}

impl PlanDirectory {
    /// Makes the files in an existing folder; for the harness.
    pub fn create(path: &Path, plan: &ShimPlan) -> Result<PlanDirectory, PlanError> {
        let control = ControlFile::create(&path.join(CONTROL_FILE)).map_err(|error| PlanError::File {
            doing: "make",
            path: path.join(CONTROL_FILE),
            error,
        })?;
        let folder = PlanDirectory { path: path.into(), control };
        folder.append("")?;
        folder.replace_plan(plan)?;
        Ok(folder)
    }

    /// Opens what [`Folder::create`] made; for the stand-in.
    pub fn open(path: &Path) -> Result<PlanDirectory, PlanError> {
        let control = ControlFile::open(&path.join(CONTROL_FILE)).map_err(|error| PlanError::File {
            doing: "map",
            path: path.join(CONTROL_FILE),
            error,
        })?;
        Ok(PlanDirectory { path: path.into(), control })
    }

    pub fn control(&self) -> &ControlFile {
        &self.control
    }

    /// Replaces the plan as a whole; every process of the target reads it before its next call.
    pub fn replace_plan(&self, plan: &ShimPlan) -> Result<(), PlanError> {
        let path = self.path.join(PLAN_FILE);
        let invalid = |message: String| PlanError::Invalid { path: path.clone(), message };
        if plan.rules.len() > MAX_RULES {
            return Err(invalid(format!("{} rules; at most {MAX_RULES} are known", plan.rules.len())));
        }
        if plan.health.xids.len() > MAX_XIDS {
            return Err(invalid(format!("{} XIDs; at most {MAX_XIDS} are known", plan.health.xids.len())));
        }
        let text = serde_json::to_vec_pretty(plan).map_err(|error| invalid(error.to_string()))?;
        let aside = self.path.join(".plan.json");
        std::fs::write(&aside, text).map_err(|error| PlanError::File {
            doing: "write",
            path: aside.clone(),
            error,
        })?;
        std::fs::rename(&aside, &path).map_err(|error| PlanError::File {
            doing: "replace",
            path: path.clone(),
            error,
        })?;
        self.control.bump_generation();
        Ok(())
    }

    pub fn read_plan(&self) -> Result<ShimPlan, PlanError> {
        let path = self.path.join(PLAN_FILE);
        let text = std::fs::read(&path).map_err(|error| PlanError::File {
            doing: "read",
            path: path.clone(),
            error,
        })?;
        serde_json::from_slice(&text).map_err(|error| PlanError::Invalid { path, message: error.to_string() })
    }

    /// Adds a line.
    pub fn record_evidence(&self, evidence: &Evidence) -> Result<(), PlanError> {
        let line = serde_json::to_string(evidence).unwrap_or_default();
        self.append(&format!("{line}\n"))
    }

    fn append(&self, text: &str) -> Result<(), PlanError> {
        let path = self.path.join(EVIDENCE_FILE);
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| PlanError::File {
            doing: "write",
            path,
            error,
        })
    }

    /// All that was done so far, whole lines only.
    pub fn read_evidence(&self) -> Result<Vec<Evidence>, PlanError> {
        let path = self.path.join(EVIDENCE_FILE);
        let text =
            std::fs::read_to_string(&path).map_err(|error| PlanError::File { doing: "read", path, error })?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(armed: bool) -> ShimPlan {
        let rule = FaultRule {
            armed,
            calls: CallFilter { kinds: vec![DriverCallKind::Launch], ..CallFilter::default() },
            nth: 3,
            persistence: Persistence::Transient,
            effect: RuleEffect::Hang,
        };
        ShimPlan {
            backend: Backend::Simulated(SimulatedMachine::default()),
            health: GpuHealth::default(),
            rules: vec![rule],
        }
    }

    #[test]
    fn a_plan_reads_back_and_each_replacement_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let harness = PlanDirectory::create(dir.path(), &plan(false)).unwrap();
        let target = PlanDirectory::open(dir.path()).unwrap();
        let before = target.control().generation();
        harness.replace_plan(&plan(true)).unwrap();
        assert_ne!(target.control().generation(), before);
        assert_eq!(target.read_plan().unwrap(), plan(true));
    }

    #[test]
    fn calls_are_counted_over_all_who_share_the_folder_and_a_rule_is_used_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let one = PlanDirectory::create(dir.path(), &plan(true)).unwrap();
        let other = PlanDirectory::open(dir.path()).unwrap();
        assert_eq!((one.control().count_call(0), other.control().count_call(0)), (1, 2));
        assert!(other.control().claim(0) && !one.control().claim(0));
        assert_eq!(one.control().calls_seen(0), 2);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = PlanDirectory::create(dir.path(), &plan(true)).unwrap();
        std::fs::write(
            dir.path().join(PLAN_FILE),
            r#"{"machine":{"simulated":{"devces":2}},"state":{},"rules":[]}"#,
        )
        .unwrap();
        assert!(folder.read_plan().unwrap_err().to_string().contains("devces"));
    }
}
