//! The shim: exports the functions of libcuda, libcublasLt and libnvidia-ml, simulates a GPU or forwards to a
//! real driver, and injects the faults of a plan. Must not know scenarios, nor kernels by name. Unsafe,
//! except `rules`, `calls`, `codes`, `address_space`, and the driver's `state` and `wait`. To build it, run
//! `cargo build -p simgpu`. README.md describes how a program loads it. Not done: graphs, stream capture,
//! textures, virtual memory management, peer access and IPC.

mod address_space;
mod call_table;
mod calls;
mod codes;
mod cublaslt;
mod device_memory;
mod driver;
mod faults;
mod fibers;
mod forward;
mod hooks;
mod kernels;
mod loader;
mod locks;
mod matmul;
mod nvml;
mod stacks;
mod symbols;
mod sys;
