//! Reads a data file into samples, as a stream and within limits. Errors carry line and column. Writes
//! nothing.

mod content_id;
mod diagnosis;
mod error;
mod line_reader;
mod parse;
mod read_samples;
mod sample;
mod scan;

pub use content_id::ContentId;
pub use error::{DataError, LineError, LineProblem, LineReadError, ReadError, SampleProblem};
pub use line_reader::{LineReader, NextLine};
pub use parse::parse_line;
pub use read_samples::{NextSample, SampleReader, read_samples};
pub use sample::{Sample, Segment};
pub use scan::check_line_limits;
