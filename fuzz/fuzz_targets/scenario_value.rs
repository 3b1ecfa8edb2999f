//! A scenario as a value, printed and parsed: `shared/scenario_value.rs` has what must hold.
#![no_main]

#[path = "../shared/scenario_value.rs"]
mod scenario_value;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: scenario_value::ScenarioValue| scenario_value::check(&value));
