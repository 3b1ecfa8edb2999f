//! A GPU's health as NVML tells it: temperature, clocks held down, error counts, XIDs. Needs no CUDA context, so it still
//! answers when a worker's context is gone. Knows no training.

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

/// The driver's own name for the library first; the other one comes with development files only.
const NVML_LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// XIDs taken at one look; a card that throws more at once is told of at the next.
const MAX_XIDS_PER_SAMPLE: usize = 64;

/// What NVML tells. What a card does not count is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GpuReading {
    pub name: String,
    pub temperature_c: Option<u32>,
    /// Why clocks are held down.
    pub throttled: Vec<&'static str>,
    /// Aggregate counts.
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    pub power_w: Option<u32>,
}

/// Something worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    Warning(String),
    /// What has been computed since the last checkpoint can't be trusted.
    Untrusted(String),
}

/// One look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HealthSample {
    pub reading: Option<GpuReading>,
    pub events: Vec<HealthEvent>,
}

/// A thread that looks now and then. NVML may hang on a sick card, so nobody ever waits for the thread to end.
pub struct GpuHealthMonitor {
    sample_requests: Sender<()>,
    samples: Receiver<HealthSample>,
}

impl GpuHealthMonitor {
    /// The card that NVML counts as number `device`. Where there is no NVML or no such card: why.
    pub fn start(device: u32, every: Duration) -> Result<GpuHealthMonitor, String> {
        let ((ask, asked), (tell, looks)) = (channel(), channel());
        let (ready, started) = channel();
        let look_on = move || match open_nvml() {
            Err(why) => drop(ready.send(Err(why))),
            Ok(nvml) => run_monitor(&nvml, device, every, &asked, &tell, &ready),
        };
        std::thread::Builder::new()
            .name("gpu-health".into())
            .spawn(look_on)
            .map_err(|error| error.to_string())?;
        // A driver that does not answer at the start is as good as none.
        started
            .recv_timeout(Duration::from_secs(5))
            .unwrap_or_else(|_| Err("NVML does not answer".into()))?;
        Ok(GpuHealthMonitor { sample_requests: ask, samples: looks })
    }

    /// The next look that was taken, if there is one.
    pub fn next_sample(&self) -> Option<HealthSample> {
        self.samples.try_recv().ok()
    }

    /// Has a look taken now, and gives it with all before it; none where NVML does not answer in time.
    pub fn sample_now(&self, patience: Duration) -> Vec<HealthSample> {
        let mut looks: Vec<HealthSample> = self.samples.try_iter().collect();
        if self.sample_requests.send(()).is_ok() {
            looks.extend(self.samples.recv_timeout(patience));
        }
        looks
    }
}

fn open_nvml() -> Result<Nvml, String> {
    let mut failed = String::new();
    for name in NVML_LIBRARIES {
        match Nvml::builder().lib_path(OsStr::new(name)).init() {
            Ok(nvml) => return Ok(nvml),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

fn run_monitor(
    nvml: &Nvml,
    number: u32,
    every: Duration,
    asked: &Receiver<()>,
    tell: &Sender<HealthSample>,
    ready: &Sender<Result<(), String>>,
) {
    let device = match nvml.device_by_index(number) {
        Ok(device) => device,
        Err(error) => return drop(ready.send(Err(error.to_string()))),
    };
    let events = register_xid_events(nvml, &device);
    let mut before = read_gpu(&device).ok();
    if ready.send(Ok(())).is_err() {
        return;
    }
    let mut is_lost = false;
    while asked.recv_timeout(every) != Err(RecvTimeoutError::Disconnected) {
        let mut remarks: Vec<HealthEvent> = events.as_ref().map(pending_xid_events).unwrap_or_default();
        let facts = match read_gpu(&device) {
            Ok(facts) => {
                remarks
                    .extend(before.as_ref().map(|before| events_between(before, &facts)).unwrap_or_default());
                before = Some(facts.clone());
                Some(facts)
            }
            Err(error) => {
                if !std::mem::replace(&mut is_lost, true) {
                    remarks.push(HealthEvent::Warning(format!("NVML can't read it any more: {error}")));
                }
                None
            }
        };
        is_lost &= facts.is_none();
        if tell.send(HealthSample { reading: facts, events: remarks }).is_err() {
            return;
        }
    }
}

/// Not every card tells of XIDs.
fn register_xid_events<'nvml>(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let set = nvml.create_event_set().ok()?;
    device
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .inspect_err(|error| tracing::info!("this GPU tells no XIDs: {error}"))
        .ok()
}

fn pending_xid_events(events: &EventSet<'_>) -> Vec<HealthEvent> {
    let next = || match events.wait(0).ok()?.event_data? {
        XidError::Value(xid) => Some(xid::event_for_xid(xid)),
        XidError::Unknown => Some(HealthEvent::Warning("an XID that NVML can't name".into())),
    };
    std::iter::from_fn(next).take(MAX_XIDS_PER_SAMPLE).collect()
}

/// An error only where the card itself does not answer.
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

/// Those that slow a training down against its will.
fn throttle_reasons(reasons: ThrottleReasons) -> Vec<&'static str> {
    let known = [
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal (hardware)"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal (software)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
    ];
    known.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

/// What is worth a line between two looks. Pure.
fn events_between(before: &GpuReading, now: &GpuReading) -> Vec<HealthEvent> {
    let mut remarks = Vec::new();
    let degrees = now.temperature_c.map(|degrees| format!(" ({degrees} C)")).unwrap_or_default();
    let fresh: Vec<&str> =
        now.throttled.iter().copied().filter(|reason| !before.throttled.contains(reason)).collect();
    if !fresh.is_empty() {
        remarks.push(HealthEvent::Warning(format!("slowed down: {}{degrees}", fresh.join(", "))));
    } else if now.throttled.is_empty() && !before.throttled.is_empty() {
        remarks.push(HealthEvent::Warning(format!("no longer slowed down{degrees}")));
    }
    let rose = |before: Option<u64>, now: Option<u64>| before.zip(now).filter(|(before, now)| now > before);
    if let Some((before, now)) = rose(before.ecc_corrected, now.ecc_corrected) {
        remarks.push(HealthEvent::Warning(format!("ECC corrected errors rose from {before} to {now}")));
    }
    if let Some((before, now)) = rose(before.ecc_uncorrected, now.ecc_uncorrected) {
        remarks.push(HealthEvent::Untrusted(format!("ECC uncorrectable errors rose from {before} to {now}")));
    }
    remarks
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
        let (calm, hot) = (reading(&[], 0, 0), reading(&["power cap"], 12, 0));
        let told = events_between(&calm, &hot);
        let words = ["slowed down: power cap (91 C)", "ECC corrected errors rose from 0 to 12"];
        assert_eq!(told, words.map(|word| HealthEvent::Warning(word.into())));
        assert_eq!(events_between(&hot, &hot), []);
        assert_eq!(
            events_between(&hot, &reading(&[], 12, 0)),
            [HealthEvent::Warning("no longer slowed down (91 C)".into())]
        );
    }

    #[test]
    fn an_uncorrectable_error_makes_results_untrusted() {
        let word = "ECC uncorrectable errors rose from 0 to 1".to_owned();
        assert_eq!(events_between(&reading(&[], 0, 0), &reading(&[], 0, 1)), [HealthEvent::Untrusted(word)]);
    }

    #[test]
    fn missing_error_counts_cause_no_event() {
        assert_eq!(events_between(&GpuReading::default(), &reading(&[], 5, 5)), []);
    }
}
