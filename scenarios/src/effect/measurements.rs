//! What a baseline run measured, and the choices of faults depend on. Knows no fault.

/// Measurements of a baseline run.
#[derive(Debug, Clone, Copy)]
pub struct Measurements<'a> {
    /// Disk usage of one save, in bytes.
    pub save_bytes: u64,
    /// The files below the target's root at the end of the run, by their paths relative to it.
    pub files: &'a [String],
}
