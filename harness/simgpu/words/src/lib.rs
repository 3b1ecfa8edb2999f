//! The words for GPU faults that scenario files and the GPU shim's plan share: kinds of driver calls, when an
//! error is reported, wrong values, reasons for slow clocks, and how often a fault is injected. Knows neither
//! scenarios nor the driver.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A kind of driver call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DriverCallKind {
    /// `cuInit`, or the creation of a context.
    Initialise,
    /// Loads a module or a library of kernels.
    LoadModule,
    /// Launches a kernel or a graph. A matrix product of cublasLt is a launch of the kernel `matmul`.
    Launch,
    /// Allocates device memory or page-locked host memory.
    Allocate,
    /// Frees memory.
    Free,
    /// Copies memory.
    Copy,
    /// Waits for a stream, an event or a context.
    Synchronise,
    /// Any other call.
    Other,
}

impl DriverCallKind {
    /// Its name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            DriverCallKind::Initialise => "initialise",
            DriverCallKind::LoadModule => "load-module",
            DriverCallKind::Launch => "launch",
            DriverCallKind::Allocate => "allocate",
            DriverCallKind::Free => "free",
            DriverCallKind::Copy => "copy",
            DriverCallKind::Synchronise => "synchronise",
            DriverCallKind::Other => "other",
        }
    }
}

/// When an error is reported to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorTiming {
    /// By the call that fails.
    Immediately,
    /// By the next synchronising call, as errors in kernels are.
    AtNextSync,
}

/// A wrong value in the output of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OverwriteValue {
    /// Not a number.
    Nan,
    /// A finite value that is far from the right one.
    Wrong,
}

/// Why the clocks are throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ClockThrottleReason {
    /// Hardware thermal slowdown.
    Thermal,
    /// Software power cap.
    PowerCap,
    /// Hardware power brake.
    PowerBrake,
}

/// How often a fault is injected in one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Persistence {
    /// Once, so that a resumed target is not hit again.
    #[default]
    Transient,
    /// Each time that the trigger matches, from the first time on.
    Persistent,
}
