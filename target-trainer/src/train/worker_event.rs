//! The events that a worker reports to its daemon: one JSON value per line of standard output.

use serde::{Deserialize, Serialize};

/// An event of a worker. The serialized names are a protocol that other programs read too: they must not
/// change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerEvent {
    /// The worker has made progress since the last one, or waits for the GPU. Sent a few times a second.
    #[serde(rename = "alive")]
    Heartbeat,
    /// Training starts after this step; 0 if there was no checkpoint.
    Resumed { step: u64 },
    /// A damaged checkpoint was not resumed from.
    #[serde(rename = "passed-over")]
    CheckpointSkipped { name: String, reason: String },
    /// There is no checkpoint that can be resumed from. The run resumes from a copy of this step.
    SnapshotUsed {
        step: u64,
        #[serde(rename = "why")]
        reason: String,
    },
    /// A file can't be read at the moment. The worker tries again.
    Waiting {
        #[serde(rename = "why")]
        reason: String,
    },
    /// A step is done. The loss is text because JSON has no NaN.
    Step {
        step: u64,
        loss: String,
        /// Sent only to a daemon with a monitor.
        #[serde(default, skip_serializing_if = "StepMeasures::is_empty")]
        measured: StepMeasures,
    },
    /// A save begins.
    Saving { step: u64 },
    /// The checkpoint of this step is durable.
    Saved { step: u64 },
    /// A save was not begun.
    #[serde(rename = "put-off")]
    SaveDeferred {
        step: u64,
        #[serde(rename = "why")]
        reason: String,
    },
    /// A save failed. The files that it had written are removed.
    SaveFailed {
        step: u64,
        #[serde(rename = "why")]
        reason: String,
    },
    /// The batch of this step was skipped because the step was not finite.
    #[serde(rename = "skipped")]
    StepSkipped {
        step: u64,
        #[serde(rename = "what")]
        reason: String,
    },
    /// Training returned to the step `to` because a step was not finite.
    RolledBack {
        to: u64,
        #[serde(rename = "what")]
        reason: String,
    },
    /// Something that is not the job's complete result was in its place. It has been renamed to `to`.
    MovedAside {
        to: String,
        #[serde(rename = "why")]
        reason: String,
    },
    /// The job is done. `adapter` is the adapter's digest.
    Finished { step: u64, adapter: String },
    /// The device that training runs on. Sent first, apart from heartbeats.
    #[serde(rename = "on")]
    Device { device: String },
    /// Device memory ran out. Nothing was applied; the same batch is repeated with a smaller micro-batch.
    #[serde(rename = "shrunk")]
    MicroBatchReduced { from: usize, to: usize },
    /// Frozen weights in device memory had changed. They are uploaded again and training returned to the step
    /// `to`.
    #[serde(rename = "weights-mended")]
    WeightsReloaded { to: u64 },
    /// Frozen weights in the memory of the machine had changed. They were read again from the base model and training
    /// returned to the step `to`.
    #[serde(rename = "weights-read-again")]
    WeightsReadAgain { to: u64 },
    /// A step that was computed twice gave two results. Nothing was applied; the step is repeated.
    #[serde(rename = "disagreed")]
    ResultsDiffer { step: u64 },
    /// The GPU has not answered for this many seconds.
    #[serde(rename = "stuck")]
    GpuStuck { seconds: u64 },
    /// Why the worker exits with a code other than 0.
    #[serde(rename = "ending")]
    ExitReason {
        #[serde(rename = "why")]
        reason: String,
    },
}

/// What else a step has measured. Numbers that may be NaN are text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct StepMeasures {
    /// Norm of the gradient before clipping.
    pub gradient_norm: String,
    pub learning_rate: String,
    /// Tokens of the batch that are learned.
    pub tokens: u64,
    /// Time that it took to compute.
    pub microseconds: u64,
}

impl StepMeasures {
    /// Whether nothing was measured.
    fn is_empty(&self) -> bool {
        *self == StepMeasures::default()
    }
}

#[cfg(test)]
mod tests {
    use super::WorkerEvent;

    #[test]
    fn the_protocol_lines_stay_the_same() {
        let reason = || "r".to_owned();
        let lines = [
            (WorkerEvent::Heartbeat, r#""alive""#),
            (WorkerEvent::Saving { step: 3 }, r#"{"saving":{"step":3}}"#),
            (WorkerEvent::Saved { step: 3 }, r#"{"saved":{"step":3}}"#),
            (
                WorkerEvent::SaveFailed { step: 3, reason: reason() },
                r#"{"save-failed":{"step":3,"why":"r"}}"#,
            ),
            (WorkerEvent::SaveDeferred { step: 3, reason: reason() }, r#"{"put-off":{"step":3,"why":"r"}}"#),
            (WorkerEvent::StepSkipped { step: 3, reason: reason() }, r#"{"skipped":{"step":3,"what":"r"}}"#),
            (WorkerEvent::RolledBack { to: 3, reason: reason() }, r#"{"rolled-back":{"to":3,"what":"r"}}"#),
            (WorkerEvent::Waiting { reason: reason() }, r#"{"waiting":{"why":"r"}}"#),
            (
                WorkerEvent::MovedAside { to: "b".into(), reason: reason() },
                r#"{"moved-aside":{"to":"b","why":"r"}}"#,
            ),
            (WorkerEvent::Device { device: "cpu".into() }, r#"{"on":{"device":"cpu"}}"#),
            (WorkerEvent::MicroBatchReduced { from: 4, to: 2 }, r#"{"shrunk":{"from":4,"to":2}}"#),
            (WorkerEvent::WeightsReadAgain { to: 3 }, r#"{"weights-read-again":{"to":3}}"#),
            (WorkerEvent::WeightsReloaded { to: 3 }, r#"{"weights-mended":{"to":3}}"#),
            (WorkerEvent::ResultsDiffer { step: 3 }, r#"{"disagreed":{"step":3}}"#),
            (WorkerEvent::GpuStuck { seconds: 3 }, r#"{"stuck":{"seconds":3}}"#),
            (WorkerEvent::ExitReason { reason: reason() }, r#"{"ending":{"why":"r"}}"#),
        ];
        for (event, line) in lines {
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
            assert_eq!(serde_json::from_str::<WorkerEvent>(line).unwrap(), event);
        }
    }
}
