//! Loads the kernels: compiled by NVRTC if the loader finds it, else from the committed PTX. Knows the
//! kernels' names; `ops` knows their parameters.

mod sys;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::context::{ComputeCapability, CudaContext, nvrtc_is_present};
use super::error::DeviceError;
pub(super) use sys::CudaKernel;
use sys::CudaModule;

/// Name and text of each source, in the order of inclusion in `all.cu`.
const SOURCES: [(&str, &str); 8] = [
    ("device.h", include_str!("../../../../kernels/device.h")),
    ("memory.cu", include_str!("../../../../kernels/memory.cu")),
    ("norm.cu", include_str!("../../../../kernels/norm.cu")),
    ("elementwise.cu", include_str!("../../../../kernels/elementwise.cu")),
    ("attention.cu", include_str!("../../../../kernels/attention.cu")),
    ("flash.cu", include_str!("../../../../kernels/flash.cu")),
    ("loss.cu", include_str!("../../../../kernels/loss.cu")),
    ("optimizer.cu", include_str!("../../../../kernels/optimizer.cu")),
];
/// PTX that was compiled from the sources in advance.
const COMMITTED_PTX: &str = include_str!("../../../../kernels/ptx/kernels.ptx");
/// Environment variable. If set to `committed`, NVRTC is not used.
const PTX_VARIABLE: &str = "TARGET_TRAINER_PTX";

/// Kernels by name. The driver looks each one up once, not at every launch.
#[derive(Debug)]
pub(super) struct KernelLibrary {
    kernels: HashMap<&'static str, CudaKernel>,
}

/// Names of all kernels.
const KERNEL_NAMES: [&str; 46] = [
    "adamw",
    "attention_backward_kv_bf16",
    "attention_backward_kv_bf16_d128",
    "attention_backward_kv_bf16_d16",
    "attention_backward_kv_bf16_d32",
    "attention_backward_kv_bf16_d64",
    "attention_backward_kv_f32",
    "attention_backward_q_bf16",
    "attention_backward_q_bf16_d128",
    "attention_backward_q_bf16_d16",
    "attention_backward_q_bf16_d32",
    "attention_backward_q_bf16_d64",
    "attention_backward_q_f32",
    "attention_bf16",
    "attention_bf16_d128",
    "attention_bf16_d16",
    "attention_bf16_d32",
    "attention_bf16_d64",
    "attention_delta_bf16",
    "attention_delta_f32",
    "attention_f32",
    "cast_bf16",
    "checksum",
    "cross_entropy_bf16",
    "cross_entropy_f32",
    "embed_bf16",
    "embed_f32",
    "finish_norm",
    "gather_rows_bf16",
    "gather_rows_f32",
    "rms_norm_backward_bf16",
    "rms_norm_backward_f32",
    "rms_norm_bf16",
    "rms_norm_f32",
    "rope_bf16",
    "rope_f32",
    "scatter_rows_bf16",
    "scatter_rows_f32",
    "spread_bf16",
    "spread_f32",
    "square_sum",
    "swiglu_backward_bf16",
    "swiglu_backward_f32",
    "swiglu_bf16",
    "swiglu_f32",
    "weighted_sum",
];

impl KernelLibrary {
    /// Loads all kernels into the context.
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<KernelLibrary, DeviceError> {
        let module = match compile_with_nvrtc(context).map(|ptx| CudaModule::load(context, &ptx)) {
            Some(Ok(module)) => module,
            Some(Err(error @ DeviceError::ContextLost { .. })) => return Err(error),
            // NVRTC may be newer than the driver, which then can't load its PTX.
            Some(Err(error)) => {
                tracing::info!("the driver can't load NVRTC's PTX, so the committed PTX is used: {error}");
                CudaModule::load(context, COMMITTED_PTX)?
            }
            None => CudaModule::load(context, COMMITTED_PTX)?,
        };
        let with_name = |name: &'static str| module.kernel(name).map(|kernel| (name, kernel));
        Ok(KernelLibrary { kernels: KERNEL_NAMES.into_iter().map(with_name).collect::<Result<_, _>>()? })
    }

    /// Returns a kernel and its static name.
    pub(super) fn kernel(&self, name: &str) -> Option<(&'static str, &CudaKernel)> {
        self.kernels.get_key_value(name).map(|(name, kernel)| (*name, kernel))
    }
}

/// Compiles the sources with NVRTC. Returns `None` if it is missing, disabled, or rejects the sources.
fn compile_with_nvrtc(context: &CudaContext) -> Option<String> {
    if std::env::var_os(PTX_VARIABLE).is_some_and(|choice| choice == "committed") || !nvrtc_is_present() {
        return None;
    }
    let ComputeCapability { major, minor } = context.compute_capability;
    let arch: &'static str = format!("compute_{major}{minor}").leak();
    let options = CompileOptions {
        arch: Some(arch),
        name: Some("kernels.cu".into()),
        options: vec!["--std=c++17".into()],
        ..CompileOptions::default()
    };
    match compile_ptx_with_opts(joined_sources(), options) {
        Ok(ptx) => Some(ptx.to_src()),
        Err(error) => {
            tracing::warn!(
                "NVRTC can't compile the kernels for {arch}, so the committed PTX is used: {error:?}"
            );
            None
        }
    }
}

/// All sources as one text, so that NVRTC needs no include directory.
fn joined_sources() -> String {
    let without_includes = |text: &str| -> String {
        let is_code = |line: &&str| !line.starts_with("#include \"") && *line != "#pragma once";
        text.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect()
    };
    SOURCES.iter().map(|(_, text)| without_includes(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_launched_kernel_is_in_the_committed_ptx_and_the_sources() {
        let sources = joined_sources();
        for name in KERNEL_NAMES {
            assert!(COMMITTED_PTX.contains(&format!(".visible .entry {name}(")), "{name} is not in the PTX");
            // A macro defines the kernels that exist for several head sizes: `ENTRY(stem_d, 64, ..)`.
            let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
            let entry = format!("\nENTRY({stem}, {},", &name[stem.len()..]);
            let is_defined = sources.contains(&format!(" {name}(")) || sources.contains(&entry);
            assert!(is_defined, "{name} is not in the sources");
        }
    }

    #[test]
    fn the_embedded_sources_match_all_cu() {
        let all_cu = include_str!("../../../../kernels/all.cu");
        let included: Vec<&str> =
            all_cu.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"')).collect();
        assert_eq!(included, SOURCES[1..].iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
