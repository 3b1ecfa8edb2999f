//! Changes one sample of a data file so that its loss overflows.

use std::path::Path;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};

/// The workload was changed before the target was started; that it landed is for the target's words to show.
pub(super) struct PoisonedSample;

impl InjectableFault for PoisonedSample {
    fn mechanism(&self) -> String {
        "a weight written into the data before it was handed in".into()
    }

    fn inject(&mut self, _scene: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        None
    }
}

/// Gives the `sample`-th line (1-based) of the file this weight.
pub fn poison(file: &Path, sample: u32, weight: f64) -> Result<(), FaultError> {
    let text = std::fs::read_to_string(file).map_err(FaultError::file("read", file))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let count = lines.len();
    let at = sample as usize;
    let line = at.checked_sub(1).and_then(|at| lines.get_mut(at)).ok_or_else(|| {
        FaultError::Workload(format!(
            "sample {sample} is to be poisoned, but `{}` has {count}",
            file.display()
        ))
    })?;
    *line = with_weight(line, weight).ok_or_else(|| {
        FaultError::Workload(format!("line {sample} of `{}` is not a JSON object", file.display()))
    })?;
    std::fs::write(file, lines.join("\n") + "\n").map_err(FaultError::file("write", file))
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
