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
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// XIDs taken at one look; a card that throws more at once is told of at the next.
const XIDS_AT_ONCE: usize = 64;

/// What NVML tells. What a card does not count is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GpuFacts {
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
pub enum Remark {
    Warning(String),
    /// What has been computed since the last checkpoint can't be trusted.
    Distrust(String),
}

/// One look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    pub facts: Option<GpuFacts>,
    pub remarks: Vec<Remark>,
}

/// A thread that looks now and then. NVML may hang on a sick card, so nobody ever waits for the thread to end.
pub struct GpuHealth {
    ask: Sender<()>,
    looks: Receiver<Look>,
}

impl GpuHealth {
    /// The card that NVML counts as number `device`. Where there is no NVML or no such card: why.
    pub fn watch(device: u32, every: Duration) -> Result<GpuHealth, String> {
        let ((ask, asked), (tell, looks)) = (channel(), channel());
        let (ready, started) = channel();
        let look_on = move || match open() {
            Err(why) => drop(ready.send(Err(why))),
            Ok(nvml) => watch(&nvml, device, every, &asked, &tell, &ready),
        };
        std::thread::Builder::new()
            .name("gpu-health".into())
            .spawn(look_on)
            .map_err(|error| error.to_string())?;
        // A driver that does not answer at the start is as good as none.
        started
            .recv_timeout(Duration::from_secs(5))
            .unwrap_or_else(|_| Err("NVML does not answer".into()))?;
        Ok(GpuHealth { ask, looks })
    }

    /// The next look that was taken, if there is one.
    pub fn look(&self) -> Option<Look> {
        self.looks.try_recv().ok()
    }

    /// Has a look taken now, and gives it with all before it; none where NVML does not answer in time.
    pub fn look_now(&self, patience: Duration) -> Vec<Look> {
        let mut looks: Vec<Look> = self.looks.try_iter().collect();
        if self.ask.send(()).is_ok() {
            looks.extend(self.looks.recv_timeout(patience));
        }
        looks
    }
}

fn open() -> Result<Nvml, String> {
    let mut failed = String::new();
    for name in LIBRARIES {
        match Nvml::builder().lib_path(OsStr::new(name)).init() {
            Ok(nvml) => return Ok(nvml),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

fn watch(
    nvml: &Nvml,
    number: u32,
    every: Duration,
    asked: &Receiver<()>,
    tell: &Sender<Look>,
    ready: &Sender<Result<(), String>>,
) {
    let device = match nvml.device_by_index(number) {
        Ok(device) => device,
        Err(error) => return drop(ready.send(Err(error.to_string()))),
    };
    let events = events(nvml, &device);
    let mut before = read(&device).ok();
    if ready.send(Ok(())).is_err() {
        return;
    }
    let mut is_lost = false;
    while asked.recv_timeout(every) != Err(RecvTimeoutError::Disconnected) {
        let mut remarks: Vec<Remark> = events.as_ref().map(xids).unwrap_or_default();
        let facts = match read(&device) {
            Ok(facts) => {
                remarks.extend(before.as_ref().map(|before| changes(before, &facts)).unwrap_or_default());
                before = Some(facts.clone());
                Some(facts)
            }
            Err(error) => {
                if !std::mem::replace(&mut is_lost, true) {
                    remarks.push(Remark::Warning(format!("NVML can't read it any more: {error}")));
                }
                None
            }
        };
        is_lost &= facts.is_none();
        if tell.send(Look { facts, remarks }).is_err() {
            return;
        }
    }
}

/// Not every card tells of XIDs.
fn events<'nvml>(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let set = nvml.create_event_set().ok()?;
    device
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .inspect_err(|error| tracing::info!("this GPU tells no XIDs: {error}"))
        .ok()
}

fn xids(events: &EventSet<'_>) -> Vec<Remark> {
    let next = || match events.wait(0).ok()?.event_data? {
        XidError::Value(xid) => Some(xid::remark(xid)),
        XidError::Unknown => Some(Remark::Warning("an XID that NVML can't name".into())),
    };
    std::iter::from_fn(next).take(XIDS_AT_ONCE).collect()
}

/// An error only where the card itself does not answer.
fn read(device: &Device<'_>) -> Result<GpuFacts, NvmlError> {
    let temperature_c = match device.temperature(TemperatureSensor::Gpu) {
        Err(error @ (NvmlError::GpuLost | NvmlError::Unknown | NvmlError::Uninitialized)) => {
            return Err(error);
        }
        temperature => temperature.ok(),
    };
    let memory = device.memory_info().ok();
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Aggregate).ok();
    Ok(GpuFacts {
        name: device.name().unwrap_or_default(),
        temperature_c,
        throttled: device.current_throttle_reasons().map(throttled).unwrap_or_default(),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        power_w: device.power_usage().ok().map(|milliwatts| milliwatts / 1000),
    })
}

/// Those that slow a training down against its will.
fn throttled(reasons: ThrottleReasons) -> Vec<&'static str> {
    let known = [
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal (hardware)"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal (software)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
    ];
    known.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

/// What is worth a line between two looks. Pure.
fn changes(before: &GpuFacts, now: &GpuFacts) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let degrees = now.temperature_c.map(|degrees| format!(" ({degrees} C)")).unwrap_or_default();
    let fresh: Vec<&str> =
        now.throttled.iter().copied().filter(|reason| !before.throttled.contains(reason)).collect();
    if !fresh.is_empty() {
        remarks.push(Remark::Warning(format!("slowed down: {}{degrees}", fresh.join(", "))));
    } else if now.throttled.is_empty() && !before.throttled.is_empty() {
        remarks.push(Remark::Warning(format!("no longer slowed down{degrees}")));
    }
    let rose = |before: Option<u64>, now: Option<u64>| before.zip(now).filter(|(before, now)| now > before);
    if let Some((before, now)) = rose(before.ecc_corrected, now.ecc_corrected) {
        remarks.push(Remark::Warning(format!("ECC corrected errors rose from {before} to {now}")));
    }
    if let Some((before, now)) = rose(before.ecc_uncorrected, now.ecc_uncorrected) {
        remarks.push(Remark::Distrust(format!("ECC uncorrectable errors rose from {before} to {now}")));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(throttled: &[&'static str], corrected: u64, uncorrected: u64) -> GpuFacts {
        GpuFacts {
            temperature_c: Some(91),
            throttled: throttled.to_vec(),
            ecc_corrected: Some(corrected),
            ecc_uncorrected: Some(uncorrected),
            ..GpuFacts::default()
        }
    }

    #[test]
    fn a_change_is_told_once_and_a_standing_state_is_not_told_again() {
        let (calm, hot) = (facts(&[], 0, 0), facts(&["power cap"], 12, 0));
        let told = changes(&calm, &hot);
        let words = ["slowed down: power cap (91 C)", "ECC corrected errors rose from 0 to 12"];
        assert_eq!(told, words.map(|word| Remark::Warning(word.into())));
        assert_eq!(changes(&hot, &hot), []);
        assert_eq!(
            changes(&hot, &facts(&[], 12, 0)),
            [Remark::Warning("no longer slowed down (91 C)".into())]
        );
    }

    #[test]
    fn an_uncorrectable_error_takes_the_trust_away() {
        let word = "ECC uncorrectable errors rose from 0 to 1".to_owned();
        assert_eq!(changes(&facts(&[], 0, 0), &facts(&[], 0, 1)), [Remark::Distrust(word)]);
    }

    #[test]
    fn a_card_that_counts_no_errors_is_no_reason_for_a_remark() {
        assert_eq!(changes(&GpuFacts::default(), &facts(&[], 5, 5)), []);
    }
}
