//! The plan of GPU faults, which the shim reads inside of the target: any bytes are a plan or an error, never a panic. A plan
//! that was read is written and read back as the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simgpu_plan::ShimPlan;

fuzz_target!(|data: &[u8]| {
    if let Ok(plan) = ShimPlan::parse(data) {
        assert_eq!(ShimPlan::parse(&plan.to_json()).expect("a plan that was written is read again"), plan);
    }
});
