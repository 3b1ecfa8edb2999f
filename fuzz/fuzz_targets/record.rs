//! `record.jsonl`, which `analyze` reads from anywhere: any bytes are a record or an error with its line and column, never a
//! panic. A record that was read is written and read back as the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scenarios::Record;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Record::parse(text) {
        Ok(record) => {
            let lines: String = record.entries.iter().map(|entry| entry.to_line() + "\n").collect();
            let again = Record::parse(&lines).expect("a record that was written is read again");
            assert_eq!(again.entries, record.entries);
        }
        Err(error) => assert!(error.line >= 1 && error.column <= text.len() + 1),
    }
});
