//! Classifies the driver's functions by name: their kinds, and which of their arguments are sizes or kernels.
//! Pure. Must not know rules.

use simgpu_plan::DriverCallKind;

/// Returns the kind of a function.
pub(crate) fn call_kind(name: &str) -> DriverCallKind {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if starts(&["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxCreate"]) {
        DriverCallKind::Initialise
    } else if starts(&["cuModuleLoad", "cuLibraryLoad"]) {
        DriverCallKind::LoadModule
    } else if starts(&["cuLaunchHostFunc"]) {
        DriverCallKind::Other
    } else if starts(&["cuLaunch", "cuGraphLaunch", "cublasLtMatmul"]) {
        DriverCallKind::Launch
    } else if starts(&["cuMemAlloc", "cuMemHostAlloc", "cuMemCreate", "cuArrayCreate", "cuArray3DCreate"]) {
        DriverCallKind::Allocate
    } else if starts(&["cuMemFree", "cuMemRelease", "cuArrayDestroy"]) {
        DriverCallKind::Free
    } else if starts(&["cuMemcpy"]) {
        DriverCallKind::Copy
    } else if starts(&["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"]) {
        DriverCallKind::Synchronise
    } else {
        DriverCallKind::Other
    }
}

/// Returns whether the function waits for queued work and therefore reports its errors.
pub(crate) fn waits_for_work(name: &str) -> bool {
    match call_kind(name) {
        DriverCallKind::Synchronise => true,
        DriverCallKind::Copy => !name.contains("Async"),
        _ => false,
    }
}

/// Returns whether the function still works after an error that breaks the context.
pub(crate) fn works_after_errors(name: &str) -> bool {
    name.starts_with("cuGetError") || name.starts_with("cuGetProcAddress") || name == "cuDriverGetVersion"
}

/// Returns a name without the suffix of the variants that use the calling thread's default stream. Both have the
/// same arguments.
fn without_stream_suffix(name: &str) -> &str {
    name.strip_suffix("_ptsz").or_else(|| name.strip_suffix("_ptds")).unwrap_or(name)
}

/// Returns the arguments whose product is the size of an allocation or a copy in bytes. Empty: no such
/// argument.
pub(crate) fn byte_arguments(name: &str) -> &'static [usize] {
    match without_stream_suffix(name).trim_end_matches("_v2") {
        "cuMemAlloc" | "cuMemAllocAsync" | "cuMemAllocFromPoolAsync" | "cuMemAllocManaged" => &[1],
        "cuMemHostAlloc" | "cuMemAllocHost" | "cuMemCreate" => &[1],
        "cuMemAllocPitch" => &[2, 3],
        "cuMemcpyPeer" | "cuMemcpyPeerAsync" => &[4],
        "cuMemcpyAtoD" | "cuMemcpyDtoA" | "cuMemcpyHtoA" | "cuMemcpyAtoH" => &[3],
        "cuMemcpy" | "cuMemcpyAsync" | "cuMemcpyHtoD" | "cuMemcpyDtoH" | "cuMemcpyDtoD" => &[2],
        "cuMemcpyHtoDAsync" | "cuMemcpyDtoHAsync" | "cuMemcpyDtoDAsync" => &[2],
        _ => &[],
    }
}

/// Returns the index of the argument that is the launched function or kernel.
pub(crate) fn kernel_argument(name: &str) -> Option<usize> {
    match without_stream_suffix(name) {
        "cuLaunchKernel"
        | "cuLaunchCooperativeKernel"
        | "cuLaunch"
        | "cuLaunchGrid"
        | "cuLaunchGridAsync" => Some(0),
        "cuLaunchKernelEx" => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_classified_by_name() {
        assert_eq!(call_kind("cuLaunchKernelEx"), DriverCallKind::Launch);
        assert_eq!(call_kind("cuLaunchHostFunc"), DriverCallKind::Other);
        assert_eq!(call_kind("cuMemAllocFromPoolAsync"), DriverCallKind::Allocate);
        assert_eq!(call_kind("cuMemcpyDtoHAsync_v2"), DriverCallKind::Copy);
        assert!(
            waits_for_work("cuMemcpyDtoH_v2")
                && !waits_for_work("cuMemcpyDtoHAsync_v2")
                && waits_for_work("cuEventSynchronize")
        );
        assert_eq!(byte_arguments("cuMemcpyDtoHAsync_v2"), [2]);
        assert_eq!(byte_arguments("cuMemcpyDtoHAsync_v2_ptsz"), [2]);
        assert_eq!(kernel_argument("cuLaunchKernel_ptsz"), Some(0));
    }
}
