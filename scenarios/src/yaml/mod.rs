//! YAML text -> any type that serde can deserialize, with the place of each value and all problems at once.
//! Knows nothing of scenarios.

pub(crate) mod leaf;
pub(crate) mod problem;
pub(crate) mod read;
pub(crate) mod spanned;
pub(crate) mod tree;
