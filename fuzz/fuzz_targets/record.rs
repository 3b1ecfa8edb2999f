//! Parses any bytes as a `record.jsonl`, which `analyze` accepts from anywhere. They must give a record, or
//! an error with its line and column; never a panic. A parsed record must be the same after it is written and
//! parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scenarios::Record;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Record::parse(text) {
        Ok(record) => {
            let lines: String = record.entries.iter().map(|entry| entry.to_line() + "\n").collect();
            let reparsed = Record::parse(&lines).expect("a written record can be parsed");
            assert_eq!(reparsed.entries, record.entries);
        }
        Err(error) => assert!(error.line >= 1 && error.column <= text.len() + 1),
    }
});
