//! From a data file to samples: streaming, limited, every error with line and column. Writes nothing.

mod sample;

pub use sample::{Sample, Segment};
