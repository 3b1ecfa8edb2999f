//! The shim: exports the functions of libcuda, libcublasLt and libnvidia-ml, simulates a GPU or forwards to a
//! real driver, and injects the faults of a plan. Must not know scenarios, nor kernels by name.
//!
//! To build and run it, with links to the library in `links/` and a plan in `plan/` (README.md says how both
//! are made):
//!
//! ```console
//! $ cargo build -p simgpu
//! $ LD_LIBRARY_PATH=links TRAINWRECK_GPU=plan your-program
//! ```
//!
//! From the ground up: `faults` decides what is injected; `driver` simulates, with `fibers`, `matmul` and
//! `device_memory`; `forward` calls a real driver instead; `hooks` sends each call to one of the two; `cublaslt`
//! and `nvml` are entry points of their own. `symbols` and `nvml_exports` export all functions by name.
//!
//! Not simulated: graphs, stream capture, textures, virtual memory management, peer access and IPC.

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
mod nvml_exports;
mod stacks;
mod symbols;
mod sys;
