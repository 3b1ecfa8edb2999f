//! Sends any bytes to the monitor's server, as one client. `shared/server.rs` lists the properties that must hold.
#![no_main]

#[path = "../shared/server.rs"]
mod server;

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use server::ServerCheck;

thread_local! {
    /// The server of this process, with a root in a directory of its own.
    static SERVER: LazyCell<ServerCheck> = LazyCell::new(|| {
        let dir = std::env::temp_dir().join(format!("trainwreck-fuzz-server-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).expect("a temporary directory can be made");
        ServerCheck::new(&dir, &[])
    });
}

fuzz_target!(|data: &[u8]| {
    SERVER.with(|server| server.check(data));
});
