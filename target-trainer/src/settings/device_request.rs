//! Which device is asked for: `auto`, `cpu` or `cuda:N`, the same in the settings and on the command line.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A device as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceRequest {
    /// The first GPU that can be used, else the CPU.
    Auto,
    Cpu,
    /// Counted as the driver counts them, from 0.
    Cuda(usize),
}

/// A device that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no device; known are `auto`, `cpu` and `cuda:N`, such as `cuda:0`")]
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
    fn from(asked: DeviceRequest) -> String {
        asked.to_string()
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
    fn a_device_reads_back_and_an_unknown_one_is_refused_with_the_known_ones() {
        for asked in [DeviceRequest::Auto, DeviceRequest::Cpu, DeviceRequest::Cuda(3)] {
            assert_eq!(asked.to_string().parse(), Ok(asked));
        }
        for wrong in ["gpu", "cuda", "cuda:", "cuda:x", "cuda:-1"] {
            let error = wrong.parse::<DeviceRequest>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("`{wrong}` is no device; known are `auto`, `cpu` and `cuda:N`, such as `cuda:0`")
            );
        }
    }
}
