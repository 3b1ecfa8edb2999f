//! Decides about names of files that come from outside: from the inbox, the commands `submit` and `consolidate`, the
//! monitor, manifests, indexes of shards, and the cache of the Hugging Face hub. All of them ask this module, so that
//! no two places decide differently. It touches no file.
//!
//! `file_name` knows what a file can be called, `ignored_name` which names the daemon ignores, `free_name` how a name
//! is shortened and numbered, `shown_name` how it is printed, `look_alike` which names look alike, and `name_index`
//! whether a name looks like one that was seen before.

mod file_name;
mod free_name;
mod ignored_name;
mod look_alike;
mod name_index;
mod shown_name;

pub use file_name::{MAX_NAME_BYTES, NameProblem, PathProblem, check_name, check_path, is_file_name};
pub use free_name::{SHORT_NAME_BYTES, max_name_bytes, numbered_name};
pub use ignored_name::{IGNORED_RULE, is_hidden, is_ignored, is_job_id, visible_name};
pub use look_alike::{NameDifference, NameKeys, TwinNames};
pub use name_index::NameIndex;
pub use shown_name::shown_name;
