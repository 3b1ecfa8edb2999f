//! Which fault of a scenario's method is meant, and why one was not effective. Knows no fault.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A fault of a scenario's method. Two faults of one kind have different numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FaultId {
    /// Its place in the method, 1-based.
    pub number: u32,
    /// Its key in a scenario file, such as `fail-call`.
    pub key: String,
}

/// Such as `fault 2, fail-call`.
impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault {}, {}", self.number, self.key)
    }
}

/// A fault whose effect nothing has shown in a trial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotEffective {
    /// Which fault.
    pub fault: FaultId,
    /// Why, one line.
    pub why: String,
    /// It waited for a call that the baseline run made and this trial did not, as the order of threads may have
    /// it.
    pub not_reached: bool,
}

/// Such as `fault 2, fail-call: the run ended at step 40; it waits for step 3000`.
impl fmt::Display for NotEffective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.why)
    }
}
