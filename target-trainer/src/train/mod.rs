//! Training: the engine computes steps from a recipe, samples and a base model. The worker runs the engine,
//! saves checkpoints and reports events.

mod engine;
mod frozen_base;
mod job_data;
mod patience;
mod resume_point;
mod saver;
mod worker;
mod worker_config;
mod worker_error;
mod worker_event;

pub use engine::{
    Engine, EngineConfig, Evaluation, NonFinite, ParityMismatch, RestoreError, SampleReadError, SampleStore,
    SampleStoreBuilder, Snapshot, StepError, StepOptions, StepReport,
};
pub use saver::{Saver, SaverEvent};
pub use worker::run_worker;
pub use worker_config::WorkerConfig;
pub use worker_event::{StepMeasures, WorkerEvent};
