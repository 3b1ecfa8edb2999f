//! Prints any scenario as YAML and parses it. `shared/scenario_value.rs` compares the two values.
#![no_main]

#[path = "../shared/scenario_value.rs"]
mod scenario_value;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: scenario_value::ScenarioValue| scenario_value::check(&value));
