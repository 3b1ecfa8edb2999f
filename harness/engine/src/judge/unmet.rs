//! What a trial had in place of an expected fact, and the text for it. Knows no scenario.

use scenarios::Outcome;

/// What was found in place of an expected fact.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Unmet {
    /// The outcome is none of the expected ones.
    #[error("{outcome}: {because}")]
    OtherOutcome { outcome: Outcome, because: String },
    /// More than the maximum.
    #[error("{found} {of}")]
    TooMany { found: u64, of: CountedQuantity },
    /// The number is not known, so it is not within its maximum.
    #[error("{0}: not known")]
    NotKnown(CountedQuantity),
    /// The target recovered too late.
    #[error("{seconds:.2} s to recover")]
    SlowRecovery { seconds: f64 },
    /// No step was announced after the fault.
    #[error("it did not recover")]
    NoRecovery,
    /// The values at the end differ from the baseline's.
    #[error("ended with {}", if .values.is_empty() { "no value".to_owned() } else { .values.join(", ") })]
    OtherValues { values: Vec<String> },
    /// There are no values at the end that could be compared.
    #[error("the target printed no value to compare")]
    NoValues,
    /// The last step differs from the baseline's, so the losses cannot be compared.
    #[error(
        "ended at {}, the baseline run at step {baseline}",
        .step.map_or_else(|| "no step".into(), |step| format!("step {step}"))
    )]
    OtherLastStep { step: Option<u64>, baseline: u64 },
    /// The final loss is too far from the baseline's.
    #[error("final loss {loss}, baseline {baseline}")]
    OtherLoss { loss: f64, baseline: f64 },
    /// The trial has no final loss.
    #[error("the target did not print the loss of its last step, or the loss is not finite")]
    NoLoss,
    /// The baseline has no final loss.
    #[error("the baseline run did not print a finite loss of its last step")]
    NoBaselineLoss,
    /// The line was not printed.
    #[error("no line matched `{pattern}`")]
    NoLine { pattern: String },
    /// The check of the target or its files found something else.
    #[error("{found}")]
    FailedProbe { found: String },
    /// The check was not made in this trial.
    #[error("was not probed")]
    NotProbed,
}

/// Something that an expectation limits to a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CountedQuantity {
    LostSteps,
    Restarts,
    /// In MiB, rounded up.
    PeakMemory,
    OpenFiles,
    Threads,
    /// In milliseconds.
    ZombieTime,
}

impl std::fmt::Display for CountedQuantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CountedQuantity::LostSteps => "steps lost",
            CountedQuantity::Restarts => "restarts by the harness",
            CountedQuantity::PeakMemory => "MiB of peak memory",
            CountedQuantity::OpenFiles => "open files of one process",
            CountedQuantity::Threads => "threads",
            CountedQuantity::ZombieTime => "ms as a zombie",
        })
    }
}
