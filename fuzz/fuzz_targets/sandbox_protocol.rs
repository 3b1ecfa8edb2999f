//! Decodes any bytes as a message between the harness and a sandbox's init. The first byte selects the
//! direction; the rest is one message. They must give a message or an error, never a panic. A decoded message
//! must be the same after it is encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use engine::sandbox::check_packet_round_trip;

fuzz_target!(|data: &[u8]| {
    if let Some((direction, packet)) = data.split_first() {
        check_packet_round_trip(direction % 2 == 0, packet);
    }
});
