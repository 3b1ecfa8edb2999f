//! The requested device: `auto`, `cpu` or `cuda:N`, written the same in the settings and on the command line.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The requested device. The worker resolves it to a [`crate::device::DeviceId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceRequest {
    /// The first usable GPU, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index, as the driver counts them, from 0.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{0}`; use `auto`, `cpu` or `cuda:N`, such as `cuda:0`")]
pub struct UnknownDevice(String);

impl FromStr for DeviceRequest {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<DeviceRequest, UnknownDevice> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match text {
            "auto" => Ok(DeviceRequest::Auto),
            "cpu" => Ok(DeviceRequest::Cpu),
            _ => number(text).map(DeviceRequest::Cuda).ok_or_else(|| UnknownDevice(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DeviceRequest {
    type Error = UnknownDevice;

    fn try_from(text: String) -> Result<DeviceRequest, UnknownDevice> {
        text.parse()
    }
}

impl From<DeviceRequest> for String {
    fn from(request: DeviceRequest) -> String {
        request.to_string()
    }
}

impl std::fmt::Display for DeviceRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceRequest::Auto => f.write_str("auto"),
            DeviceRequest::Cpu => f.write_str("cpu"),
            DeviceRequest::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceRequest;

    #[test]
    fn a_device_is_parsed_from_its_text_and_the_error_lists_the_known_ones() {
        for request in [DeviceRequest::Auto, DeviceRequest::Cpu, DeviceRequest::Cuda(3)] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        for wrong in ["gpu", "cuda", "cuda:", "cuda:x", "cuda:-1"] {
            let error = wrong.parse::<DeviceRequest>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("unknown device `{wrong}`; use `auto`, `cpu` or `cuda:N`, such as `cuda:0`")
            );
        }
    }
}
