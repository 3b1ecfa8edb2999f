//! How many recoveries that were forked from a warm interpreter were compared with new processes. Compares nothing.

use std::fmt::{Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::trials_planned::grouped;

/// The recoveries of an exploration whose recoveries were forked from an interpreter with imported libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkedRecoveries {
    /// How many forked recoveries are no finding.
    pub recovered: u64,
    /// How many of them were also run as new processes, which did the same.
    pub compared: u64,
}

impl Display for ForkedRecoveries {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (compared, recovered) = (grouped(self.compared), grouped(self.recovered));
        write!(
            f,
            "warm start: {compared} of {recovered} recovered states were also run as new processes, with the same \
             result"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::ForkedRecoveries;

    #[test]
    fn the_line_counts_those_that_were_also_run_as_new_processes() {
        let line = ForkedRecoveries { recovered: 1340, compared: 12 }.to_string();
        let expected =
            "warm start: 12 of 1,340 recovered states were also run as new processes, with the same result";
        assert_eq!(line, expected);
    }
}
