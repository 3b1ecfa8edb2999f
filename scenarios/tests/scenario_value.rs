//! Runs the structure-aware fuzz target on random values: a scenario that is printed as YAML is parsed as the
//! same value.

#[path = "../../fuzz/shared/scenario_value.rs"]
mod scenario_value;

use arbitrary::{Arbitrary, Unstructured};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_printed_scenario_is_parsed_as_the_same_value(
        bytes in proptest::collection::vec(any::<u8>(), 0..1024)
    ) {
        let value = scenario_value::ScenarioValue::arbitrary_take_rest(Unstructured::new(&bytes)).unwrap();
        scenario_value::check(&value);
    }
}
