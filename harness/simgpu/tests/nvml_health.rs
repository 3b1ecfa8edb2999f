//! NVML is consistent with the driver: the plan's health, the consequences of injected errors, a lost GPU.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod support;

use std::ffi::OsStr;

use cudarc::driver::CudaContext;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use simgpu_plan::{
    ClockThrottleReason, DriverCallKind, ErrorTiming, GpuHealth, Persistence, RuleEffect, ShimPlan,
};
use support::{ShimSetup, TestGpu, is_body, plan, rule};

fn nvml() -> Nvml {
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().unwrap()
}

/// Runs the body in its own process under a plan.
fn check(test: &str, plan: &ShimPlan, body: impl FnOnce()) {
    match is_body(test) {
        true => body(),
        false => drop(ShimSetup::new(plan).run(test)),
    }
}

fn xids(nvml: &Nvml) -> Vec<u64> {
    let device = nvml.device_by_index(0).unwrap();
    let set = nvml.create_event_set().unwrap();
    let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
    delivered(&set)
}

/// Returns all XIDs that are delivered without waiting.
fn delivered(set: &nvml_wrapper::event::EventSet<'_>) -> Vec<u64> {
    let next = || match set.wait(0).ok()?.event_data? {
        XidError::Value(xid) => Some(xid),
        XidError::Unknown => None,
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn nvml_reports_the_health_of_the_plan() {
    let health = GpuHealth {
        temperature_c: Some(93),
        throttled: vec![ClockThrottleReason::Thermal, ClockThrottleReason::PowerCap],
        ecc_corrected: 7,
        ecc_uncorrected: 1,
        xids: vec![63, 94],
        ..GpuHealth::default()
    };
    let test = "nvml_reports_the_health_of_the_plan";
    check(test, &ShimPlan { health, ..plan(Vec::new()) }, || {
        let nvml = nvml();
        assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12_080);
        assert_eq!(nvml.device_count().unwrap(), 1);
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.name().unwrap(), "Simulated GPU");
        assert_eq!(nvml.device_by_uuid(device.uuid().unwrap()).unwrap().index().unwrap(), 0);
        assert_eq!(device.pci_info().unwrap().bus_id, "00000000:01:00.0");
        assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 93);
        let reasons = ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::SW_POWER_CAP;
        assert_eq!(device.current_throttle_reasons().unwrap(), reasons);
        let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).unwrap();
        assert_eq!((ecc(MemoryError::Corrected), ecc(MemoryError::Uncorrected)), (7, 1));
        assert_eq!(device.memory_info().unwrap().total, 1 << 30);
        assert_eq!(xids(&nvml), [63, 94]);
        assert_eq!(xids(&nvml), [0; 0], "each process receives each XID once");
        assert!(device.power_usage().unwrap() > 0);
    });
}

#[test]
fn nvml_counts_and_reports_an_uncorrectable_error() {
    let effect = RuleEffect::Fail { code: 214, reported: ErrorTiming::AtNextSync, sticky: true };
    let test = "nvml_counts_and_reports_an_uncorrectable_error";
    check(test, &plan(vec![rule(DriverCallKind::Launch, 1, Persistence::Transient, effect)]), || {
        use cudarc::driver::{LaunchConfig, PushKernelArg};
        let nvml = nvml();
        let device = nvml.device_by_index(0).unwrap();
        let uncorrected =
            || device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Aggregate).unwrap();
        assert_eq!(uncorrected(), 0);
        let gpu = TestGpu::new();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let function = gpu.kernel("planted_nothing");
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&mut out);
        // SAFETY: the arguments have the types of the kernel's parameters.
        unsafe { launch.launch(LaunchConfig::for_num_elems(1)) }.unwrap();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 214);
        assert_eq!(uncorrected(), 1, "NVML still works after the error");
        assert_eq!(xids(&nvml), [48]);
    });
}

#[test]
fn a_gpu_that_falls_off_the_bus_is_lost_in_cuda_and_nvml() {
    let test = "a_gpu_that_falls_off_the_bus_is_lost_in_cuda_and_nvml";
    let effect = RuleEffect::Fail { code: 100, reported: ErrorTiming::Immediately, sticky: true };
    check(test, &plan(vec![rule(DriverCallKind::Synchronise, 2, Persistence::Transient, effect)]), || {
        let nvml = nvml();
        let device = nvml.device_by_index(0).unwrap();
        let set = nvml.create_event_set().unwrap();
        let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
        let gpu = TestGpu::new();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 100);
        assert!(matches!(device.temperature(TemperatureSensor::Gpu), Err(NvmlError::GpuLost)));
        assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
        assert_eq!(delivered(&set), [79]);
    });
}

#[test]
fn a_gpu_lost_at_start_is_no_device_and_one_lost_later_is_an_unknown_error() {
    let test = "a_gpu_lost_at_start_is_no_device_and_one_lost_later_is_an_unknown_error";
    let mut lost = plan(Vec::new());
    if is_body(test) {
        let gpu = match std::env::var_os("SIMGPU_LOST") {
            Some(_) => return assert_eq!(CudaContext::new(0).unwrap_err().0 as u32, 100),
            None => TestGpu::new(),
        };
        lost.health.lost = true;
        let path = std::env::var(simgpu_plan::DIRECTORY_VARIABLE).unwrap();
        simgpu_plan::PlanDirectory::open(path.as_ref()).unwrap().replace_plan(&lost).unwrap();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0 as u32, 999);
        assert!(matches!(nvml().device_by_index(0), Err(NvmlError::GpuLost)));
        return;
    }
    let setup = ShimSetup::new(&lost);
    setup.run(test);
    let output = setup.command(test).env("SIMGPU_LOST", "1").output().unwrap();
    support::successful_output(&output);
    setup.plan_dir.replace_plan(&plan(Vec::new())).unwrap();
    assert!(!setup.plan_dir.control().is_lost());
}
