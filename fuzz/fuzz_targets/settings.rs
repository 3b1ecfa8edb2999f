//! Parses any text as settings, and as a change of a setting. It must give settings in range, or an error;
//! never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use target_trainer::settings::Settings;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(settings) = Settings::parse(text, "fuzz") {
        assert!(settings.train.micro_batch > 0 && settings.recipe.steps > 0);
    }
    let _ = Settings::default().with(&[text.to_owned()]);
});
