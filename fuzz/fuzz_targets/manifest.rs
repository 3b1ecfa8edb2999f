//! A checkpoint's manifest and tensors: hostile ones are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use target_trainer::store::{Manifest, decode};

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::parse(data);
    if let Ok(tensors) = decode(data) {
        assert!(tensors.iter().all(|tensor| tensor.data.len() == tensor.shape.iter().product::<usize>()));
    }
});
