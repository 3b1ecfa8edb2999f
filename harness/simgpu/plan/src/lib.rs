//! The plan that defines how the shim fails, and the evidence of what it did: files in one directory, shared
//! with the harness. The harness replaces `plan.json` as a whole. `control` is mapped into the harness and
//! into every process of the target, so that a rule counts the calls of all of them. `evidence.jsonl` has one
//! line per injected effect or detected defect. Must not know scenarios or the driver.

mod control;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use control::{ControlFile, MAX_RULES, MAX_XIDS};
pub use gpu_words::{ClockThrottleReason, DriverCallKind, ErrorTiming, OverwriteValue, Persistence};

/// Environment variable with the path of the plan directory.
pub const DIRECTORY_VARIABLE: &str = "TRAINWRECK_GPU";
const PLAN_FILE: &str = "plan.json";
const CONTROL_FILE: &str = "control";
const EVIDENCE_FILE: &str = "evidence.jsonl";

/// Why a plan directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file could not be accessed.
    #[error(transparent)]
    File(#[from] PlanFileError),
    /// The plan is not valid.
    #[error("`{path}`: {source}", path = .path.display())]
    Invalid {
        /// The plan's file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidPlan,
    },
}

/// An operation on a file of the plan directory that failed. Its text has the cause in it, because the shim
/// prints only one line.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{path}`: {source}", path = .path.display())]
pub struct PlanFileError {
    /// What the operation was to do, as a verb: `create`, `map`.
    pub doing: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

/// Why a text is not a plan.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPlan {
    /// It is not JSON, or has an unknown or missing key.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It has more rules than a plan can have.
    #[error("the plan has {count} rules; the maximum is {MAX_RULES}")]
    TooManyRules {
        /// Number of its rules.
        count: usize,
    },
    /// It has more XIDs than a plan can have.
    #[error("the plan has {count} XIDs; the maximum is {MAX_XIDS}")]
    TooManyXids {
        /// Number of its XIDs.
        count: usize,
    },
}

/// Adds to an I/O error what was done, and to which file.
fn plan_file_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PlanError {
    let path = path.to_path_buf();
    move |source| PlanFileError { doing, path, source }.into()
}

/// Which GPU the target sees, and how it fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ShimPlan {
    /// What executes the calls.
    pub backend: Backend,
    /// What NVML reports.
    pub health: GpuHealth,
    /// At most [`MAX_RULES`]. The index of a rule identifies it.
    pub rules: Vec<FaultRule>,
}

/// What executes the calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Backend {
    /// The simulation inside the shim.
    Simulated(SimulatedMachine),
    /// The real libraries. Default paths: the first library of that name that the loader finds and that is
    /// not the shim.
    Forwarded {
        /// Path of the real libcuda.
        libcuda: Option<PathBuf>,
        /// Path of the real libnvidia-ml.
        libnvidia_ml: Option<PathBuf>,
    },
}

/// A simulated machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SimulatedMachine {
    /// Number of devices.
    pub devices: u32,
    /// Memory of each device.
    pub memory_bytes: u64,
    /// Newest CUDA version that the driver supports: 12080 is 12.8.
    pub driver_version: i32,
    /// Major and minor number.
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

/// What NVML reports for every device, in addition to the consequences of injected errors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct GpuHealth {
    /// The GPU has fallen off the bus. New contexts find no device, calls in existing contexts fail, and NVML
    /// reports that the GPU is lost.
    pub lost: bool,
    /// Temperature in degrees Celsius. Default: 45 in the simulation, else what the real NVML reports.
    pub temperature_c: Option<u32>,
    /// Why the clocks are reduced.
    pub throttled: Vec<ClockThrottleReason>,
    /// Corrected memory errors, added to the volatile and the aggregate counter.
    pub ecc_corrected: u64,
    /// Uncorrected memory errors, added to the volatile and the aggregate counter.
    pub ecc_uncorrected: u64,
    /// XID events, in order. Each is delivered once to each listening process.
    pub xids: Vec<u64>,
}

/// Selects a call and an effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FaultRule {
    /// An unarmed rule neither counts calls nor injects its effect.
    pub armed: bool,
    /// Which calls the rule counts.
    pub calls: CallFilter,
    /// Number of the counted call that gets the effect, from 1. All processes count together.
    pub nth: u64,
    /// Whether later calls get the effect too.
    pub persistence: Persistence,
    /// What is injected.
    pub effect: RuleEffect,
}

/// Selects driver calls. A call must match all fields.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct CallFilter {
    /// Empty: all kinds.
    pub kinds: Vec<DriverCallKind>,
    /// Glob on the function's name, such as `cuMemAlloc*`.
    pub function: Option<String>,
    /// Glob on the kernel's name; matches launches only. A real driver's kernel is known if the program
    /// looked it up by name or if the driver has `cuFuncGetName`.
    pub kernel: Option<String>,
    /// Minimum size of an allocation or a copy. 0: all calls.
    pub min_bytes: u64,
}

/// What a rule injects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RuleEffect {
    /// Nothing. The rule only counts calls.
    Count,
    /// The call fails. NVML stays consistent: code 214 (uncorrectable ECC error) counts one error and
    /// delivers XID 48, and code 100 (no device) makes the GPU lost and delivers XID 79.
    Fail {
        /// A `CUresult`.
        code: u32,
        /// Which call reports the error.
        reported: ErrorTiming,
        /// Every later call of the process fails as well, as after the loss of a context.
        sticky: bool,
    },
    /// The launched kernel never ends, so calls that wait for it never return. On a real driver, and for all
    /// other calls, the call itself never returns.
    Hang,
    /// Simulated only. Overwrites one value that the launch wrote to its first buffer.
    Overwrite {
        /// The new value.
        with: OverwriteValue,
        /// Selects the value.
        seed: u64,
    },
    /// Simulated only. Flips one bit of the largest allocation.
    FlipBit {
        /// Selects the bit.
        seed: u64,
    },
    /// Simulated only. Splits free memory into holes, as other users of the memory would.
    Fragment {
        /// Largest hole.
        hole_bytes: u64,
    },
}

/// One injected effect, or one defect that the simulation detected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    /// Index of the rule that injected the effect. `None` for a defect that the simulation detected, such as
    /// an access out of bounds.
    pub rule: Option<usize>,
    /// The process in which it happened.
    pub pid: u32,
    /// What happened, for people.
    pub description: String,
}

/// An open plan directory.
pub struct PlanDirectory {
    path: PathBuf,
    control: ControlFile,
}

impl ShimPlan {
    /// Parses a plan from JSON.
    ///
    /// # Errors
    /// The JSON is wrong, a key is unknown, or there are more rules or XIDs than a plan can have.
    pub fn parse(json: &[u8]) -> Result<ShimPlan, InvalidPlan> {
        let plan: ShimPlan = serde_json::from_slice(json)?;
        plan.check_limits()?;
        Ok(plan)
    }

    /// The plan as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // All keys are text and there are no floating-point numbers, so JSON can express every plan.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    fn check_limits(&self) -> Result<(), InvalidPlan> {
        let (rules, xids) = (self.rules.len(), self.health.xids.len());
        if rules > MAX_RULES {
            return Err(InvalidPlan::TooManyRules { count: rules });
        }
        if xids > MAX_XIDS {
            return Err(InvalidPlan::TooManyXids { count: xids });
        }
        Ok(())
    }
}

impl PlanDirectory {
    /// Creates the files in an existing directory. The harness calls this.
    ///
    /// # Errors
    /// The plan is invalid, the directory already has a control file, or a file cannot be written.
    pub fn create(path: &Path, plan: &ShimPlan) -> Result<PlanDirectory, PlanError> {
        let control_path = path.join(CONTROL_FILE);
        let control = ControlFile::create(&control_path).map_err(plan_file_error("create", &control_path))?;
        let directory = PlanDirectory { path: path.into(), control };
        directory.append("")?;
        directory.replace_plan(plan)?;
        Ok(directory)
    }

    /// Opens a directory that [`PlanDirectory::create`] has filled. The shim calls this.
    ///
    /// # Errors
    /// The control file cannot be opened or mapped, or another version wrote it.
    pub fn open(path: &Path) -> Result<PlanDirectory, PlanError> {
        let control_path = path.join(CONTROL_FILE);
        let control = ControlFile::open(&control_path).map_err(plan_file_error("map", &control_path))?;
        Ok(PlanDirectory { path: path.into(), control })
    }

    /// The counters and flags that all processes share.
    pub fn control(&self) -> &ControlFile {
        &self.control
    }

    /// Replaces the whole plan. Every process of the target reads it before its next call.
    ///
    /// # Errors
    /// The plan has too many rules or XIDs, or a file cannot be written.
    pub fn replace_plan(&self, plan: &ShimPlan) -> Result<(), PlanError> {
        let path = self.path.join(PLAN_FILE);
        plan.check_limits().map_err(|source| PlanError::Invalid { path: path.clone(), source })?;
        let temporary = self.path.join(".plan.json");
        std::fs::write(&temporary, plan.to_json()).map_err(plan_file_error("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(plan_file_error("replace", &path))?;
        self.control.bump_generation();
        Ok(())
    }

    /// Reads the current plan.
    ///
    /// # Errors
    /// The file cannot be read or is not a valid plan.
    pub fn read_plan(&self) -> Result<ShimPlan, PlanError> {
        let path = self.path.join(PLAN_FILE);
        let text = std::fs::read(&path).map_err(plan_file_error("read", &path))?;
        ShimPlan::parse(&text).map_err(|source| PlanError::Invalid { path, source })
    }

    /// Appends one line to the evidence.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record_evidence(&self, evidence: &Evidence) -> Result<(), PlanError> {
        let line = serde_json::to_string(evidence).unwrap_or_default();
        self.append(&format!("{line}\n"))
    }

    fn append(&self, text: &str) -> Result<(), PlanError> {
        let path = self.path.join(EVIDENCE_FILE);
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(plan_file_error("write", &path))
    }

    /// Reads all evidence so far. An incomplete last line is ignored.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_evidence(&self) -> Result<Vec<Evidence>, PlanError> {
        let path = self.path.join(EVIDENCE_FILE);
        let text = std::fs::read_to_string(&path).map_err(plan_file_error("read", &path))?;
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
    fn a_replaced_plan_is_read_back_and_changes_the_generation() {
        let dir = tempfile::tempdir().unwrap();
        let harness = PlanDirectory::create(dir.path(), &plan(false)).unwrap();
        let target = PlanDirectory::open(dir.path()).unwrap();
        let before = target.control().generation();
        harness.replace_plan(&plan(true)).unwrap();
        assert_ne!(target.control().generation(), before);
        assert_eq!(target.read_plan().unwrap(), plan(true));
    }

    #[test]
    fn processes_that_share_the_directory_count_together_and_claim_a_rule_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = PlanDirectory::create(dir.path(), &plan(true)).unwrap();
        let second = PlanDirectory::open(dir.path()).unwrap();
        assert_eq!((first.control().count_call(0), second.control().count_call(0)), (1, 2));
        assert!(second.control().claim(0) && !first.control().claim(0));
        assert_eq!(first.control().calls_seen(0), 2);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PlanDirectory::create(dir.path(), &plan(true)).unwrap();
        std::fs::write(
            dir.path().join(PLAN_FILE),
            r#"{"backend":{"simulated":{"devces":2}},"health":{},"rules":[]}"#,
        )
        .unwrap();
        assert!(directory.read_plan().unwrap_err().to_string().contains("devces"));
    }
}
