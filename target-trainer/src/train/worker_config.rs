//! What a worker is told when it starts. Does nothing.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::worker_event::WorkerEvent;
use crate::device::WaitTracker;
use crate::settings::{DeviceRequest, Settings};
use crate::store::RootLayout;

/// What a worker needs to run.
pub struct WorkerConfig<'a> {
    /// The root.
    pub layout: &'a RootLayout,
    /// The root's settings.
    pub settings: &'a Settings,
    /// Id of the job to train.
    pub job: &'a str,
    /// Id of the job's data.
    pub data: &'a str,
    /// Digest of the base model that the job was accepted with, if it is known.
    pub base: Option<&'a str>,
    /// Samples in memory at once. May be smaller than the setting after an out-of-memory error.
    pub micro_batch: NonZeroUsize,
    /// The device to train on.
    pub device: DeviceRequest,
    /// Tracks how long the worker has waited for the device. Another thread reads it.
    pub wait_tracker: Arc<WaitTracker>,
    /// Reports an event to the daemon.
    pub emit: &'a dyn Fn(WorkerEvent),
    /// Whether a signal has requested a stop.
    pub stop_requested: &'a dyn Fn() -> bool,
}
