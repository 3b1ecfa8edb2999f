//! Training: the engine computes steps from a recipe, samples and a base model. The worker runs the engine,
//! saves checkpoints and reports events.

mod engine;
mod recipe;
mod saver;
mod state;
mod worker;
mod worker_event;

pub use engine::{
    Engine, EngineConfig, EngineError, Evaluation, NonFinite, ParityMismatch, RestoreError, Snapshot,
    StepOptions, StepReport,
};
pub use recipe::{Projection, Recipe};
pub use state::{Cursor, NamedTensor, TrainState};
pub use worker::{WorkerConfig, base_digest, run_worker};
pub use worker_event::WorkerEvent;
