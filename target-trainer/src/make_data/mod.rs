//! Data to train on: sums, and texts from a folder. Yields JSON lines; writes nothing.

mod arithmetic;
mod text;

pub use arithmetic::{arithmetic, held_out};
pub use text::{TextError, text};
