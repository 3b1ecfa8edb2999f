//! Training proper: a recipe, samples and a base go in; steps come out. No files, no processes, no clock.

mod engine;
mod recipe;
mod state;

pub use engine::{Engine, NonFinite, StepReport};
pub use recipe::Recipe;
pub use state::{Cursor, NamedTensor, TrainState};
