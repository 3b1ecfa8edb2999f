//! Generates data to train on: sums, and texts from a directory. Yields JSON lines; writes nothing.

mod arithmetic;
mod text;

pub use arithmetic::{arithmetic, held_out};
pub use text::{TextError, text};
