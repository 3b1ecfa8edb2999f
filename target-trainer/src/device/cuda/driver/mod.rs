//! Raw functions of the CUDA driver. The types that own its handles are in `../context` and
//! `../sys.rs`.

mod sys;

pub(super) use sys::*;
