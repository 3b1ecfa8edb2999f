//! What must hold of any bytes that a client sends to the monitor. For the fuzz target and for a test.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use target_trainer::monitor::InMemoryServer;
use target_trainer::names::{is_file_name, is_ignored};
use target_trainer::settings::Settings;
use target_trainer::store::RootLayout;

/// The token of the root.
pub(crate) const TOKEN: &str = "0123456789abcdef";
/// All that the server and HTTP say.
const STATUSES: [u16; 15] = [100, 200, 201, 400, 401, 403, 404, 405, 408, 413, 414, 421, 431, 503, 507];

/// A server with a root of its own.
pub(crate) struct ServerCheck {
    layout: RootLayout,
    server: InMemoryServer,
}

impl ServerCheck {
    /// Makes the root in this directory, which exists and is empty, with changes of the settings.
    pub(crate) fn new(dir: &Path, changes: &[&str]) -> ServerCheck {
        let layout = RootLayout::new(dir);
        std::fs::create_dir(layout.inbox()).unwrap();
        std::fs::write(layout.monitor_token(), TOKEN).unwrap();
        let changes = ["monitor.enabled=true", "monitor.upload_bytes=65536"].iter().chain(changes);
        let changes: Vec<String> = changes.map(|change| change.to_string()).collect();
        let settings = Settings::default().with(&changes);
        let server = InMemoryServer::new(&layout, &settings.unwrap()).unwrap();
        ServerCheck { layout, server }
    }

    /// Sends the bytes, as one client. There must be answers with known statuses, or none. A file is submitted only by
    /// a `POST` with the token, one for each 201, under a name that the daemon takes; nothing else changes. Returns the
    /// statuses.
    pub(crate) fn check(&self, data: &[u8]) -> Vec<u16> {
        let answer = self.server.answer(data);
        assert!(answer.is_empty() || status_of(&answer).is_some(), "{}", answer.escape_ascii());
        let statuses: Vec<u16> = answer.split(|byte| *byte == b'\n').filter_map(status_of).collect();
        assert!(statuses.iter().all(|status| STATUSES.contains(status)), "{statuses:?}");
        let names = names_in(&self.layout.inbox());
        assert_eq!(names.len(), statuses.iter().filter(|status| **status == 201).count(), "{names:?}");
        assert_eq!(names_in(self.layout.root()), ["inbox", "monitor-token"]);
        for name in names {
            let contains = |part: &str| data.windows(part.len()).any(|window| window == part.as_bytes());
            assert!(contains("POST ") && contains("/jobs?") && contains(TOKEN), "{}", data.escape_ascii());
            assert!(is_file_name(&name) && !is_ignored(name.as_ref()), "{name:?}");
            let path = self.layout.inbox().join(&name);
            let metadata = path.symlink_metadata().unwrap();
            assert!(metadata.is_file() && metadata.permissions().mode() & 0o222 == 0, "{metadata:?}");
            assert!(metadata.len() <= data.len() as u64);
            std::fs::remove_file(path).unwrap();
        }
        statuses
    }
}

/// The status, if this is the begin of an answer.
fn status_of(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
