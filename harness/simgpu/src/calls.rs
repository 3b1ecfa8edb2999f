//! What the driver's functions are: their kinds, and where among their arguments sizes lie. Pure.

use simgpu_plan::DriverCallKind;

/// The kind of a function, by its name.
pub(crate) fn call_kind(name: &str) -> DriverCallKind {
    let starts = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
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

/// Whether the function tells errors of work that was given out before.
pub(crate) fn waits_for_work(name: &str) -> bool {
    match call_kind(name) {
        DriverCallKind::Synchronise => true,
        DriverCallKind::Copy => !name.contains("Async"),
        _ => false,
    }
}

/// Whether the function works on after an error that breaks the context.
pub(crate) fn works_after_errors(name: &str) -> bool {
    name.starts_with("cuGetError") || name.starts_with("cuGetProcAddress") || name == "cuDriverGetVersion"
}

/// Which arguments, multiplied, say how many bytes an allocation or a copy has.
pub(crate) fn byte_arguments(name: &str) -> &'static [usize] {
    match name.trim_end_matches("_v2") {
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

/// Which argument is the function or kernel that is launched.
pub(crate) fn kernel_argument(name: &str) -> Option<usize> {
    match name {
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
    fn kinds_follow_what_a_function_does() {
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
    }
}
