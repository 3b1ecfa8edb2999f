//! Sends any bytes to the monitor's server, as one client. `shared/server.rs` lists the properties that must hold.
#![no_main]

#[path = "../shared/server.rs"]
mod server;

use libfuzzer_sys::fuzz_target;
use server::ServerCheck;

fuzz_target!(|data: &[u8]| {
    // One root for each input: libFuzzer ends without removing anything.
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    ServerCheck::new(dir.path(), &[]).check(data);
});
