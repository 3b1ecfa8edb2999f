//! What the test programs of the trainer share. Must not know any test.

#[macro_use]
pub(crate) mod trial;
