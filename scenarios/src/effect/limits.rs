//! The fault `limits`: less of a resource than the target needs.

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::ByteSize;
use crate::yaml::spanned::Spanned;

/// The fewest open files: the standard streams.
const MIN_OPEN_FILES: u32 = 3;

fault!(
    /// Limits on resources. One of the keys must be given.
    LimitsDraft {
        /// How many files, sockets and pipes each process may have open, at least 3: EMFILE.
        open_files: Option<Spanned<u32>>,
        /// How many processes and threads the target may have together: EAGAIN. A negative number counts from how
        /// many it has then: with `-3`, three fewer. Those that run already stay, however many they are.
        processes: Option<Spanned<i32>>,
        /// Up to which size a process may write a file: EFBIG, and the signal XFSZ.
        file_size: Option<ByteSize>,
    }
);

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceLimit {
    /// Open files of each process.
    OpenFiles(u32),
    /// Processes and threads of the whole target.
    Processes(ProcessCount),
    /// The size of a file that is written.
    FileSize(ByteSize),
}

/// How many processes and threads there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessCount {
    /// At least 1.
    AtMost(u32),
    /// So many fewer than there are when the fault is injected, at least 1.
    Fewer(u32),
}

/// Gives the target less of a resource.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The limit.
    pub limit: ResourceLimit,
}

impl CheckEffect for LimitsDraft {
    type Checked = Limits;

    fn check(&self, checker: &mut Checker) -> Limits {
        let LimitsDraft { open_files, processes, file_size, .. } = self;
        let mut limits = Vec::new();
        if let Some(max) = open_files {
            if max.value < MIN_OPEN_FILES {
                let message = format!("`open-files` must be at least {MIN_OPEN_FILES}");
                checker.problems.push(max.problem(message));
            }
            limits.push(ResourceLimit::OpenFiles(max.value));
        }
        if let Some(max) = processes {
            limits.push(ResourceLimit::Processes(match max.value {
                count @ 1.. => ProcessCount::AtMost(count.unsigned_abs()),
                count => ProcessCount::Fewer(count.unsigned_abs()),
            }));
            if max.value == 0 {
                checker.problems.push(max.problem("`processes` must not be 0"));
            }
        }
        limits.extend(file_size.map(ResourceLimit::FileSize));
        let [limit] = limits[..] else {
            // A key that could not be read is reported already.
            if checker.is_complete {
                checker.method_problem(
                    "`limits` must have exactly one of `open-files`, `processes` and `file-size`",
                    "for several limits, write several faults `limits`",
                );
            }
            return Limits { limit: ResourceLimit::Processes(ProcessCount::AtMost(1)) };
        };
        Limits { limit }
    }
}

impl EffectSpec for Limits {
    fn describe(&self) -> String {
        match self.limit {
            ResourceLimit::OpenFiles(max) => format!("at most {max} open files in each process"),
            ResourceLimit::Processes(ProcessCount::AtMost(max)) => {
                format!("at most {max} processes and threads")
            }
            ResourceLimit::Processes(ProcessCount::Fewer(by)) => {
                format!("{by} fewer processes and threads than there are")
            }
            ResourceLimit::FileSize(max) => format!("no file larger than {} bytes", max.0),
        }
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        match self.limit {
            ResourceLimit::Processes(_) => Some("process-cgroup"),
            ResourceLimit::OpenFiles(_) | ResourceLimit::FileSize(_) => None,
        }
    }

    fn limits_processes(&self) -> bool {
        matches!(self.limit, ResourceLimit::Processes(_))
    }

    fn is_shown_by_failed_calls(&self) -> bool {
        !self.limits_processes()
    }

    fn makes_calls_fail(&self) -> bool {
        true
    }
}
