//! The packets between the harness and a sandbox's init. The first byte selects the direction; the rest is one packet. Any
//! bytes are a message or an error, never a panic. A message that was decoded is encoded and decoded as the same message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainwreck::sandbox::check_packet_round_trip;

fuzz_target!(|data: &[u8]| {
    if let Some((direction, packet)) = data.split_first() {
        check_packet_round_trip(direction % 2 == 0, packet);
    }
});
