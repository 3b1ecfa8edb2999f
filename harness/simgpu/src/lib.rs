//! Stands in for libcuda, libcublasLt and libnvidia-ml: simulates a GPU, or forwards to a real driver, and fails by plan.
//!
//! Unsafe, for C lies on the other side: `sys` (pages and signals), `symbols` and `hooks` (the exported functions),
//! `kernels`, `fibers` and `stacks` (C++ code), `memory` and `matmul` (device memory), `driver`, `cublaslt`, `nvml` (functions that C
//! calls), `forward` (the real libraries). Safe: `rules`, `calls`, `codes`, `space`, and `state` and `wait` of the driver.
//! It must not know scenarios, nor any kernel by name.

mod address_space;
mod calls;
mod codes;
mod cublaslt;
mod device_memory;
mod driver;
mod fibers;
mod forward;
mod hooks;
mod kernels;
mod matmul;
mod nvml;
mod rules;
mod stacks;
mod symbols;
mod sys;
