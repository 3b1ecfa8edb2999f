//! What a run is and how far it has come, as data: the recipe, and the state that a checkpoint stores. Reads
//! and writes nothing, and computes no step.

mod cursor;
mod named_tensor;
mod projection;
mod recipe;
mod train_state;

pub use cursor::Cursor;
pub use named_tensor::NamedTensor;
pub use projection::Projection;
pub use recipe::{InvalidField, MAX_BATCH, Recipe};
pub use train_state::TrainState;
