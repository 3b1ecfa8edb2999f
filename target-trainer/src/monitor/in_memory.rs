//! The monitor's server for one client in memory: the same router behind the same HTTP, without a network. For tests
//! that send any bytes, many thousand times a second.

use std::sync::{Arc, Mutex};

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::runtime::{Builder, Runtime};

use super::monitor_view::{MonitorView, SharedFigures};
use super::routes::MonitorApp;
use super::server::serve;
use crate::settings::Settings;
use crate::store::RootLayout;

/// Bytes on their way to or from the client.
const BUFFER_BYTES: usize = 1 << 16;

/// A server that is asked in memory.
pub struct InMemoryServer {
    runtime: Runtime,
    router: Router,
}

impl InMemoryServer {
    /// The server of a root.
    ///
    /// # Errors
    /// If the runtime can't be made.
    pub fn new(layout: &RootLayout, settings: &Settings) -> std::io::Result<InMemoryServer> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let view = Arc::new(Mutex::new(MonitorView::default()));
        let app = MonitorApp::new(layout, settings, view, Arc::new(SharedFigures::default()));
        Ok(InMemoryServer { runtime, router: app.router() })
    }

    /// All that a client receives that sends these bytes, and ends its side.
    pub fn answer(&self, sent: &[u8]) -> Vec<u8> {
        let (client, server) = duplex(BUFFER_BYTES);
        let (mut from_server, mut to_server) = split(client);
        let serving = serve(server, self.router.clone(), Arc::default(), true);
        let sending = async {
            // The server may have closed because of what it has got so far.
            let _ = to_server.write_all(sent).await;
            let _ = to_server.shutdown().await;
        };
        let mut answer = Vec::new();
        let receiving = from_server.read_to_end(&mut answer);
        // Reading from memory can't fail.
        let _ = self.runtime.block_on(async { tokio::join!(serving, sending, receiving) });
        answer
    }
}
