//! The settings of a root: one TOML file with a description of every key. An unknown key is an error that
//! names the nearest known one.

mod device_request;
mod documented;
mod former_keys;
mod root_settings;
mod sections;
mod time_of_day;

pub use device_request::DeviceRequest;
pub use documented::documented_toml;
pub use root_settings::{Settings, SettingsError};
pub use sections::{
    ConsolidationSettings, DeviceSettings, Guards, HealthSettings, Limits, MaintenanceSettings,
    MonitorSettings, OnGpuLost, OnNonFinite, TrainSettings,
};
pub use time_of_day::{NotTimeOfDay, TimeOfDay};
