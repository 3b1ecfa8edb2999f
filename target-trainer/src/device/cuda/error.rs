//! Errors of the driver and cublasLt, classified by what the caller can do about them. Codes are integers,
//! because a driver may return codes that no list has.

/// Why an operation on the device failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The CUDA context is lost. Only a new process can use the device again.
    ///
    /// Fields of all variants: the device as users name it, the call that failed, the name and number of its
    /// error, and the driver's error code.
    #[error(
        "{device}: `{call}` failed with {detail}: the CUDA context of this process is lost; \
         restart the process"
    )]
    ContextLost { device: String, call: &'static str, detail: String, code: Option<u32> },
    /// Out of device memory, even after a retry with all cached memory returned. Nothing was applied.
    #[error(
        "{device}: `{call}` failed with {detail}: out of memory; \
         use a smaller micro-batch or stop other programs that use the GPU"
    )]
    OutOfMemory { device: String, call: &'static str, detail: String, code: Option<u32> },
    /// There is no such device. With a code, the device may come back; without a code, waiting is useless.
    #[error("{device} can't be used: {reason}")]
    Unavailable { device: String, reason: String, code: Option<u32> },
    /// The driver or the GPU is too old, or driver and libraries do not match.
    #[error(
        "{device} can't be used: it has {found}, but {required} is required; \
         update the driver or train on the CPU"
    )]
    Incompatible { device: String, found: String, required: String, code: Option<u32> },
    /// A call was rejected: an error in this program.
    #[error("{device}: `{call}` failed with {detail}")]
    CallFailed { device: String, call: &'static str, detail: String, code: Option<u32> },
}

/// The variant of [`DeviceError`] that an error code maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorClass {
    ContextLost,
    OutOfMemory,
    Unavailable,
    Incompatible,
    CallFailed,
}

/// The oldest driver that can load the committed PTX and has all functions that are called.
pub(super) const DRIVER_REQUIREMENT: &str = "a driver for CUDA 12.0 or later";
/// `CUDA_ERROR_OUT_OF_MEMORY`.
const ERROR_OUT_OF_MEMORY: u32 = 2;
/// `CUDA_ERROR_NOT_FOUND`. Also returned if the driver lacks a function.
pub(super) const ERROR_NOT_FOUND: u32 = 500;

/// Classifies a `CUresult` of `cuda.h`. From 700 on the context is lost, with a few exceptions. Unknown codes
/// above 700 are treated the same.
fn classify(code: u32) -> ErrorClass {
    match code {
        ERROR_OUT_OF_MEMORY => ErrorClass::OutOfMemory,
        3 | 34 | 46 | 100..=102 | 802 => ErrorClass::Unavailable,
        209 | 218 | 221..=223 | 803..=805 => ErrorClass::Incompatible,
        4 | 201 | 214 | 220 | 226 | 304 => ErrorClass::ContextLost,
        701 | 703..=708 | 712 | 713 | 720 | 800 | 801 | 900..=908 => ErrorClass::CallFailed,
        700.. => ErrorClass::ContextLost,
        _ => ErrorClass::CallFailed,
    }
}

impl DeviceError {
    /// Creates the error for a driver code. `name` is the driver's name of the code.
    pub(super) fn from_driver(
        device: &str,
        call: &'static str,
        code: u32,
        name: String,
        driver: &str,
    ) -> DeviceError {
        let detail = format!("{name} ({code})");
        let class = classify(code);
        let (device, code) = (device.to_owned(), Some(code));
        match class {
            ErrorClass::ContextLost => DeviceError::ContextLost { device, call, detail, code },
            ErrorClass::OutOfMemory => DeviceError::OutOfMemory { device, call, detail, code },
            ErrorClass::Unavailable => {
                DeviceError::Unavailable { device, reason: format!("`{call}` failed with {detail}"), code }
            }
            ErrorClass::Incompatible => DeviceError::Incompatible {
                device,
                found: format!("{driver}, whose `{call}` failed with {detail}"),
                required: DRIVER_REQUIREMENT.to_owned(),
                code,
            },
            ErrorClass::CallFailed => DeviceError::CallFailed { device, call, detail, code },
        }
    }

    /// Creates the error for a cublasLt status. Use it only if the driver itself reports no error.
    pub(super) fn from_cublas(device: &str, call: &'static str, status: u32) -> DeviceError {
        let name = match status {
            1 => "CUBLAS_STATUS_NOT_INITIALIZED",
            3 => "CUBLAS_STATUS_ALLOC_FAILED",
            7 => "CUBLAS_STATUS_INVALID_VALUE",
            8 => "CUBLAS_STATUS_ARCH_MISMATCH",
            11 => "CUBLAS_STATUS_MAPPING_ERROR",
            13 => "CUBLAS_STATUS_EXECUTION_FAILED",
            14 => "CUBLAS_STATUS_INTERNAL_ERROR",
            15 => "CUBLAS_STATUS_NOT_SUPPORTED",
            _ => "an unknown cublasLt status",
        };
        let (device, detail, code) = (device.to_owned(), format!("{name} ({status})"), None);
        match status {
            3 => DeviceError::OutOfMemory { device, call, detail, code },
            11 | 13 | 14 => DeviceError::ContextLost { device, call, detail, code },
            _ => DeviceError::CallFailed { device, call, detail, code },
        }
    }

    /// Returns the driver's error code, if the error came from the driver.
    pub fn cuda_code(&self) -> Option<u32> {
        match self {
            DeviceError::ContextLost { code, .. }
            | DeviceError::OutOfMemory { code, .. }
            | DeviceError::Unavailable { code, .. }
            | DeviceError::Incompatible { code, .. }
            | DeviceError::CallFailed { code, .. } => *code,
        }
    }

    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, DeviceError::OutOfMemory { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_classified_by_recovery() {
        let expect_class = |codes: &[u32], expected| {
            assert!(codes.iter().all(|code| classify(*code) == expected), "{expected:?}: {codes:?}");
        };
        expect_class(
            &[214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 909, 999],
            ErrorClass::ContextLost,
        );
        // Codes that no version of `cuda.h` lists so far.
        expect_class(&[722, 750, 911, 12_345], ErrorClass::ContextLost);
        expect_class(&[2], ErrorClass::OutOfMemory);
        expect_class(&[34, 100, 101], ErrorClass::Unavailable);
        expect_class(&[209, 218, 222, 803, 804], ErrorClass::Incompatible);
        expect_class(&[1, 200, 400, 500, 600, 701, 801], ErrorClass::CallFailed);
    }

    #[test]
    fn an_error_names_the_call_the_code_and_the_device() {
        let error =
            DeviceError::from_driver("cuda:1", "cuLaunchKernel", 719, "CUDA_ERROR_LAUNCH_FAILED".into(), "");
        for text in ["cuda:1", "cuLaunchKernel", "CUDA_ERROR_LAUNCH_FAILED (719)"] {
            assert!(error.to_string().contains(text), "{error}");
        }
        assert_eq!(error.cuda_code(), Some(719));
    }
}
