//! Parses any bytes as a `record.jsonl`, which `analyze` accepts from anywhere.
#![no_main]

#[path = "../shared/record_text.rs"]
mod record_text;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        record_text::check_record_text(text);
    }
});
