//! Gives one sample of a data file a weight with which its loss overflows. Knows no trigger.

use std::path::Path;

use scenarios::PoisonSample;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::file_error::file_error;

/// A sample that was poisoned before the target was started. The target's output shows that the fault is
/// effective.
pub(super) struct PoisonedSample {
    fault: PoisonSample,
}

impl PoisonedSample {
    pub(super) fn new(fault: &PoisonSample) -> PoisonedSample {
        PoisonedSample { fault: fault.clone() }
    }
}

impl InjectableFault for PoisonedSample {
    fn mechanism(&self) -> String {
        "a weight written into the data before it was submitted".into()
    }

    fn alter_submitted_file(&self, file: &Path) -> Result<(), FaultError> {
        poison(file, self.fault.sample, self.fault.weight)
    }

    fn inject(&mut self, _context: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        None
    }
}

/// Gives the `sample`-th line (1-based) of the file this weight.
fn poison(file: &Path, sample: u32, weight: f64) -> Result<(), FaultError> {
    let text = std::fs::read_to_string(file).map_err(file_error::<FaultError>("read", file))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let count = lines.len();
    let index = sample as usize;
    let line = index.checked_sub(1).and_then(|index| lines.get_mut(index)).ok_or_else(|| {
        FaultError::Workload(format!(
            "sample {sample} is to be poisoned, but `{}` has only {count} samples",
            file.display()
        ))
    })?;
    *line = with_weight(line, weight).ok_or_else(|| {
        FaultError::Workload(format!("line {sample} of `{}` is not a JSON object", file.display()))
    })?;
    std::fs::write(file, lines.join("\n") + "\n").map_err(file_error("write", file))
}

fn with_weight(line: &str, weight: f64) -> Option<String> {
    let mut sample: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    sample.insert("weight".into(), weight.into());
    serde_json::to_string(&sample).ok()
}

#[cfg(test)]
mod tests {
    use super::with_weight;

    #[test]
    fn a_weight_is_added_to_the_sample_and_nothing_else_changes() {
        assert_eq!(with_weight(r#"{"text":"a"}"#, 3e38).as_deref(), Some(r#"{"text":"a","weight":3e+38}"#));
    }
}
