//! What the driver and cublasLt may say, sorted by what can be done about it. Codes are numbers here: a driver may know
//! more of them than any list.

/// Why the device did not do as it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Only a fresh process can go on.
    #[error(
        "{device}: `{call}` failed with {name}: the CUDA context of this process is lost; only a new process can go on"
    )]
    ContextLost { device: String, call: &'static str, name: String, code: Option<u32> },
    /// Nothing was applied. Memory that was only kept for later has been given back, and it was tried again.
    #[error(
        "{device}: `{call}` failed with {name}: out of memory; use a smaller micro-batch or end what else uses the card"
    )]
    OutOfMemory { device: String, call: &'static str, name: String, code: Option<u32> },
    /// With a code it may come back; without one, waiting for it is of no use.
    #[error("{device} can't be used: {why}")]
    Unavailable { device: String, why: String, code: Option<u32> },
    /// Versions that do not fit.
    #[error(
        "{device} can't be used: it has {driver}, needed is {needed}; update the driver or train on the CPU"
    )]
    Incompatible { device: String, driver: String, needed: String, code: Option<u32> },
    /// An error of ours.
    #[error("{device}: `{call}` failed with {name}")]
    CallFailed { device: String, call: &'static str, name: String, code: Option<u32> },
}

/// What can be done about a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorClass {
    ContextLost,
    OutOfMemory,
    Unavailable,
    Incompatible,
    CallFailed,
}

const ERROR_OUT_OF_MEMORY: u32 = 2;
/// Our own wherever the driver lacks a function: `CUDA_ERROR_NOT_FOUND`.
pub(super) const ERROR_NOT_FOUND: u32 = 500;

/// `cuda.h`'s numbers. From 700 on, but for a few, the context is lost; so it is with what no list knows.
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
    /// For a code of the driver; `name` is the driver's own name for it.
    pub(super) fn from_driver(
        device: &str,
        call: &'static str,
        code: u32,
        name: String,
        driver: &str,
    ) -> DeviceError {
        let name = format!("{name} ({code})");
        let (device, code) = (device.to_owned(), (Some(code), code));
        match classify(code.1) {
            ErrorClass::ContextLost => DeviceError::ContextLost { device, call, name, code: code.0 },
            ErrorClass::OutOfMemory => DeviceError::OutOfMemory { device, call, name, code: code.0 },
            ErrorClass::Unavailable => {
                DeviceError::Unavailable { device, why: format!("`{call}` failed with {name}"), code: code.0 }
            }
            ErrorClass::Incompatible => DeviceError::Incompatible {
                device,
                driver: format!("{driver}, whose `{call}` failed with {name}"),
                needed: super::DRIVER_REQUIREMENT.to_owned(),
                code: code.0,
            },
            ErrorClass::CallFailed => DeviceError::CallFailed { device, call, name, code: code.0 },
        }
    }

    /// For a status of cublasLt, once the driver was asked and knew of no error.
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
            _ => "an unknown status of cublasLt",
        };
        let (device, name, code) = (device.to_owned(), format!("{name} ({status})"), None);
        match status {
            3 => DeviceError::OutOfMemory { device, call, name, code },
            11 | 13 | 14 => DeviceError::ContextLost { device, call, name, code },
            _ => DeviceError::CallFailed { device, call, name, code },
        }
    }

    /// The driver's number, where the driver said it.
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
        let kinds = |codes: &[u32], wanted| {
            assert!(codes.iter().all(|code| classify(*code) == wanted), "{wanted:?}: {codes:?}");
        };
        kinds(
            &[214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 909, 999],
            ErrorClass::ContextLost,
        );
        // Codes that no version of `cuda.h` has, yet.
        kinds(&[722, 750, 911, 12_345], ErrorClass::ContextLost);
        kinds(&[2], ErrorClass::OutOfMemory);
        kinds(&[34, 100, 101], ErrorClass::Unavailable);
        kinds(&[209, 218, 222, 803, 804], ErrorClass::Incompatible);
        kinds(&[1, 200, 400, 500, 600, 701, 801], ErrorClass::CallFailed);
    }

    #[test]
    fn an_error_names_the_call_the_code_and_the_device() {
        let error =
            DeviceError::from_driver("cuda:1", "cuLaunchKernel", 719, "CUDA_ERROR_LAUNCH_FAILED".into(), "");
        for word in ["cuda:1", "cuLaunchKernel", "CUDA_ERROR_LAUNCH_FAILED (719)"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(error.cuda_code(), Some(719));
    }
}
