//! From a target's output to what it announces: bytes -> lines -> announcements. Both outputs are read in the same
//! way, line by line as they come, whoever runs the target. Pure; knows neither processes nor files.

mod announcement;
mod announcement_patterns;
mod error_line;
mod line_splitter;

pub use announcement::{Announced, Announcement};
pub use announcement_patterns::{AnnouncementPatterns, plain_line};
pub use error_line::error_line;
pub use line_splitter::{LineSplitter, MAX_LINE_BYTES};
