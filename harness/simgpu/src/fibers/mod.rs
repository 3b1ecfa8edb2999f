//! Runs the blocks of a launch. Their threads run one after another. A thread that waits for others keeps its
//! own fiber. `thread_block` decides which threads may run, and `sys` switches between their fibers. Must not
//! know streams, device memory or rules.
//!
//! Blocks alternate between ascending and descending thread order, and the last thread to reach a barrier
//! continues first, so that a missing barrier shows in one of the orders.

mod grid_launch;
mod sys;
mod thread_block;

pub(crate) use grid_launch::{GridLaunch, LaunchFailure, POISON};
pub(crate) use sys::FiberPool;
