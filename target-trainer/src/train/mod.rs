//! Training proper: a recipe, samples and a base go in; steps come out. `worker` is the loop around it, which saves.

mod engine;
mod recipe;
mod saver;
mod state;
mod word;
mod worker;

pub use engine::{
    Disagreement, Engine, EngineError, EngineSpec, Evaluation, NonFinite, RestoreError, Snapshot,
    StepOptions, StepReport,
};
pub use recipe::{Projection, Recipe};
pub use state::{Cursor, NamedTensor, TrainState};
pub use word::Word;
pub use worker::{Orders, base_digest, work};
