//! A GPU's health as NVML reports it: temperature, clock throttling, error counts, XIDs. Needs no CUDA
//! context, so it works even after a worker has lost its context. Knows no training.

mod health_event;
mod throttle_filter;
mod visible_gpu;
mod xid;

use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

pub use health_event::HealthEvent;
use throttle_filter::ThrottleFilter;
pub use visible_gpu::{GpuSelector, visible_gpu};

/// The name that the driver installs.
const NVML_LIBRARY: &str = "libnvidia-ml.so.1";
/// The name that exists only with development files.
const NVML_DEVELOPMENT_LIBRARY: &str = "libnvidia-ml.so";
/// XIDs read for one sample. Further XIDs are reported with the next sample.
const MAX_XIDS_PER_SAMPLE: usize = 64;

/// Values that NVML reports. `None`: this GPU does not report the value.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GpuReading {
    /// Product name.
    pub name: String,
    pub temperature_c: Option<u32>,
    /// Reasons for which clocks are currently reduced.
    pub throttled: Vec<&'static str>,
    /// Corrected ECC errors over the GPU's lifetime.
    pub ecc_corrected: Option<u64>,
    /// Uncorrectable ECC errors over the GPU's lifetime.
    pub ecc_uncorrected: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    pub power_w: Option<u32>,
}

/// One reading and the events since the previous one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HealthSample {
    /// `None`: the GPU did not answer.
    pub reading: Option<GpuReading>,
    pub events: Vec<HealthEvent>,
}

/// Why a GPU's health can't be monitored.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// NVML is missing, or does not know the GPU.
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    /// The monitor's thread can't be started.
    #[error(transparent)]
    Thread(std::io::Error),
    /// NVML hangs.
    #[error("NVML does not answer")]
    NoAnswer,
}

/// A thread that reads the GPU's health periodically. NVML may hang on a faulty GPU, so the thread is never
/// joined.
pub struct GpuHealthMonitor {
    sample_requests: Sender<()>,
    samples: Receiver<HealthSample>,
}

impl GpuHealthMonitor {
    /// Starts to monitor a GPU, once every `interval`.
    ///
    /// # Errors
    ///
    /// If NVML is missing or does not answer, or if it does not know the GPU.
    pub fn start(gpu: GpuSelector, interval: Duration) -> Result<GpuHealthMonitor, HealthError> {
        let ((request_sample, sample_requested), (send_sample, samples)) = (channel(), channel());
        let (report_ready, started) = channel();
        let run = move || match open_nvml() {
            Err(error) => drop(report_ready.send(Err(error))),
            Ok(nvml) => run_monitor(&nvml, &gpu, interval, &sample_requested, &send_sample, &report_ready),
        };
        std::thread::Builder::new().name("gpu-health".into()).spawn(run).map_err(HealthError::Thread)?;
        // A driver that does not answer at the start is treated as missing.
        started.recv_timeout(Duration::from_secs(5)).map_err(|_| HealthError::NoAnswer)??;
        Ok(GpuHealthMonitor { sample_requests: request_sample, samples })
    }

    /// Returns the oldest sample that was not yet returned, if any. Does not block.
    pub fn next_sample(&self) -> Option<HealthSample> {
        self.samples.try_recv().ok()
    }

    /// Takes a sample now and returns it after all earlier ones. The new sample is missing if NVML does not
    /// answer within `timeout`.
    pub fn sample_now(&self, timeout: Duration) -> Vec<HealthSample> {
        let mut samples: Vec<HealthSample> = self.samples.try_iter().collect();
        if self.sample_requests.send(()).is_ok() {
            samples.extend(self.samples.recv_timeout(timeout));
        }
        samples
    }
}

fn open_nvml() -> Result<Nvml, NvmlError> {
    let open = |name: &str| Nvml::builder().lib_path(OsStr::new(name)).init();
    open(NVML_LIBRARY).or_else(|_| open(NVML_DEVELOPMENT_LIBRARY))
}

fn find_gpu<'nvml>(nvml: &'nvml Nvml, gpu: &GpuSelector) -> Result<Device<'nvml>, NvmlError> {
    let begin = match gpu {
        GpuSelector::Index(index) => return nvml.device_by_index(*index),
        GpuSelector::Uuid(begin) => begin,
    };
    let all = (0..nvml.device_count()?).map(|index| nvml.device_by_index(index));
    let is_named = |device: &Device<'_>| device.uuid().is_ok_and(|uuid| uuid.starts_with(begin));
    // A part of a GPU is found by its whole UUID only.
    all.filter_map(Result::ok).find(is_named).map_or_else(|| nvml.device_by_uuid(begin.as_str()), Ok)
}

fn run_monitor(
    nvml: &Nvml,
    gpu: &GpuSelector,
    interval: Duration,
    sample_requested: &Receiver<()>,
    send_sample: &Sender<HealthSample>,
    report_ready: &Sender<Result<(), NvmlError>>,
) {
    let device = match find_gpu(nvml, gpu) {
        Ok(device) => device,
        Err(error) => return drop(report_ready.send(Err(error))),
    };
    let xid_events = register_xid_events(nvml, &device);
    let mut throttling = ThrottleFilter::default();
    let mut read = || {
        let mut reading = read_gpu(&device)?;
        reading.throttled = throttling.smooth(&reading.throttled);
        Ok::<_, NvmlError>(reading)
    };
    let mut previous = read().ok();
    if report_ready.send(Ok(())).is_err() {
        return;
    }
    let mut is_lost = false;
    while sample_requested.recv_timeout(interval) != Err(RecvTimeoutError::Disconnected) {
        let mut events: Vec<HealthEvent> = xid_events.as_ref().map(pending_xid_events).unwrap_or_default();
        let reading = match read() {
            Ok(reading) => {
                events.extend(
                    previous.as_ref().map(|previous| events_between(previous, &reading)).unwrap_or_default(),
                );
                previous = Some(reading.clone());
                Some(reading)
            }
            Err(error) => {
                if !std::mem::replace(&mut is_lost, true) {
                    events.push(HealthEvent::Warning(format!("NVML can no longer read this GPU: {error}")));
                }
                None
            }
        };
        is_lost &= reading.is_none();
        if send_sample.send(HealthSample { reading, events }).is_err() {
            return;
        }
    }
}

/// Returns `None` if the GPU does not report XIDs.
fn register_xid_events<'nvml>(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let set = nvml.create_event_set().ok()?;
    device
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .inspect_err(|error| tracing::info!("this GPU does not report XIDs: {error}"))
        .ok()
}

fn pending_xid_events(events: &EventSet<'_>) -> Vec<HealthEvent> {
    let next = || match events.wait(0).ok()?.event_data? {
        XidError::Value(xid) => Some(xid::event_for_xid(xid)),
        XidError::Unknown => Some(HealthEvent::Warning("an XID that is unknown to NVML".into())),
    };
    std::iter::from_fn(next).take(MAX_XIDS_PER_SAMPLE).collect()
}

/// Reads all values. Fails only if the GPU itself does not answer; a value that it does not support is
/// `None`.
fn read_gpu(device: &Device<'_>) -> Result<GpuReading, NvmlError> {
    let temperature_c = match device.temperature(TemperatureSensor::Gpu) {
        Err(error @ (NvmlError::GpuLost | NvmlError::Unknown | NvmlError::Uninitialized)) => {
            return Err(error);
        }
        temperature => temperature.ok(),
    };
    let memory = device.memory_info().ok();
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Aggregate).ok();
    Ok(GpuReading {
        name: device.name().unwrap_or_default(),
        temperature_c,
        throttled: device.current_throttle_reasons().map(throttle_reasons).unwrap_or_default(),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        power_w: device.power_usage().ok().map(|milliwatts| milliwatts / 1000),
    })
}

/// Names the reasons that slow training down unintentionally. Idle clocks and clocks set by the user are not
/// among them.
fn throttle_reasons(reasons: ThrottleReasons) -> Vec<&'static str> {
    let known = [
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal (hardware)"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal (software)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
    ];
    known.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

/// Compares two readings and returns the events to report. Pure.
fn events_between(before: &GpuReading, now: &GpuReading) -> Vec<HealthEvent> {
    let mut events = Vec::new();
    let temperature = now.temperature_c.map(|degrees| format!(" ({degrees} C)")).unwrap_or_default();
    let new_reasons: Vec<&str> =
        now.throttled.iter().copied().filter(|reason| !before.throttled.contains(reason)).collect();
    if !new_reasons.is_empty() {
        events.push(HealthEvent::Warning(format!("slowed down: {}{temperature}", new_reasons.join(", "))));
    } else if now.throttled.is_empty() && !before.throttled.is_empty() {
        events.push(HealthEvent::Warning(format!("no longer slowed down{temperature}")));
    }
    let rose = |before: Option<u64>, now: Option<u64>| before.zip(now).filter(|(before, now)| now > before);
    if let Some((before, now)) = rose(before.ecc_corrected, now.ecc_corrected) {
        events.push(HealthEvent::Warning(format!("ECC corrected errors rose from {before} to {now}")));
    }
    if let Some((before, now)) = rose(before.ecc_uncorrected, now.ecc_uncorrected) {
        events.push(HealthEvent::Untrusted(format!("ECC uncorrectable errors rose from {before} to {now}")));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(throttled: &[&'static str], corrected: u64, uncorrected: u64) -> GpuReading {
        GpuReading {
            temperature_c: Some(91),
            throttled: throttled.to_vec(),
            ecc_corrected: Some(corrected),
            ecc_uncorrected: Some(uncorrected),
            ..GpuReading::default()
        }
    }

    #[test]
    fn a_change_is_reported_once() {
        let (normal, throttled_reading) = (reading(&[], 0, 0), reading(&["power cap"], 12, 0));
        let events = events_between(&normal, &throttled_reading);
        let texts = ["slowed down: power cap (91 C)", "ECC corrected errors rose from 0 to 12"];
        assert_eq!(events, texts.map(|text| HealthEvent::Warning(text.into())));
        assert_eq!(events_between(&throttled_reading, &throttled_reading), []);
        assert_eq!(
            events_between(&throttled_reading, &reading(&[], 12, 0)),
            [HealthEvent::Warning("no longer slowed down (91 C)".into())]
        );
    }

    #[test]
    fn an_uncorrectable_error_makes_results_untrusted() {
        let text = "ECC uncorrectable errors rose from 0 to 1".to_owned();
        assert_eq!(events_between(&reading(&[], 0, 0), &reading(&[], 0, 1)), [HealthEvent::Untrusted(text)]);
    }

    #[test]
    fn missing_error_counts_cause_no_event() {
        assert_eq!(events_between(&GpuReading::default(), &reading(&[], 5, 5)), []);
    }
}
