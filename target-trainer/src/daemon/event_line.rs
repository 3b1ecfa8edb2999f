//! The line that the daemon prints for an event of the worker. Acts on nothing.

use crate::train::WorkerEvent;

/// The line for an event of this job's worker. `None` if nothing is printed.
pub(super) fn event_line(job: &str, event: &WorkerEvent) -> Option<String> {
    Some(match event {
        WorkerEvent::Heartbeat | WorkerEvent::ExitReason { .. } => return None,
        WorkerEvent::Resumed { step } => format!("resumed from step {step}"),
        WorkerEvent::CheckpointSkipped { name, reason } => {
            format!("skipped checkpoint {name}: {reason}")
        }
        WorkerEvent::SnapshotUsed { step, reason } => format!("using the snapshot of step {step}: {reason}"),
        WorkerEvent::Waiting { reason } => format!("waiting: {reason}"),
        WorkerEvent::Step { step, loss, .. } => format!("step {step} loss {loss}"),
        WorkerEvent::Saving { step } => format!("saving step {step}"),
        WorkerEvent::Saved { step } => format!("saved step {step}"),
        WorkerEvent::SaveDeferred { step, reason } => format!("save of step {step} deferred: {reason}"),
        WorkerEvent::SaveFailed { step, reason } => format!("save of step {step} failed: {reason}"),
        WorkerEvent::StepSkipped { step, reason } => format!("skipped step {step}: {reason}"),
        WorkerEvent::RolledBack { to, reason } => format!("rolled back to step {to}: {reason}"),
        WorkerEvent::MovedAside { to, reason } => {
            format!("what was in the place of the result is now `{to}`: {reason}")
        }
        WorkerEvent::Finished { step, adapter } => {
            format!("finished job {job} at step {step} adapter {adapter}")
        }
        WorkerEvent::Device { device } => format!("training on {device}"),
        WorkerEvent::MicroBatchReduced { from, to } => {
            format!("out of device memory; micro-batch {from} -> {to}, same effective batch")
        }
        WorkerEvent::WeightsReloaded { to } => {
            format!("frozen weights have changed in device memory; reloaded; rolled back to step {to}")
        }
        WorkerEvent::WeightsReadAgain { to } => {
            format!(
                "frozen weights have changed in the memory of this machine; read again from the base model; rolled \
                 back to step {to}"
            )
        }
        WorkerEvent::ResultsDiffer { step } => {
            format!("computed step {step} twice: the results differ; will retry the step")
        }
        WorkerEvent::GpuStuck { seconds } => format!("the GPU has not answered for {seconds} s"),
    })
}
