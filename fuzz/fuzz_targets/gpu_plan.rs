//! Parses any bytes as a plan of GPU faults, which the shim reads inside the target. They must give a plan or
//! an error, never a panic. A parsed plan must be the same after it is written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simgpu_plan::ShimPlan;

fuzz_target!(|data: &[u8]| {
    if let Ok(plan) = ShimPlan::parse(data) {
        assert_eq!(ShimPlan::parse(&plan.to_json()).expect("a written plan can be parsed"), plan);
    }
});
