//! The driver itself. Owners of what it hands out are in `sys.rs` one floor up.

mod sys;

pub(super) use sys::*;
