//! What is reported about a GPU's health.

/// A change of the GPU's health that should be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    /// A condition that does not affect results.
    Warning(String),
    /// Results computed since the last checkpoint may be wrong.
    Untrusted(String),
}
