//! Finds a port to listen at. Serves nobody.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use crate::settings::MonitorSettings;

/// Ports that are tried after the one in the settings.
const MAX_NEXT_PORTS: u16 = 20;

/// Why the monitor does not listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "the monitor can't listen at {address}{}; {}",
    if self.tried > 1 { format!(" or at one of the next {} ports", self.tried - 1) } else { String::new() },
    if self.is_final {
        "stop the program that has the port, set another `monitor.port`, or let the monitor take the next \
         free one with `monitor.pinned = false`"
    } else {
        "set another `monitor.address` or `monitor.port`; training goes on without it"
    }
)]
pub struct ListenError {
    address: SocketAddr,
    tried: u16,
    /// No other port may be used.
    is_final: bool,
    source: std::io::Error,
}

impl ListenError {
    /// Whether the settings ask for this port or none.
    pub fn ends_the_daemon(&self) -> bool {
        self.is_final
    }
}

/// A socket that listens at the address and the port of the settings, or at one of the next ports if that one
/// is taken. With `free_port` off, only the port of the settings is good enough.
pub(super) fn listen(settings: &MonitorSettings, free_port: bool) -> Result<TcpListener, ListenError> {
    let is_final = settings.pinned || !free_port;
    let next_ports = if is_final || settings.port == 0 { 0 } else { MAX_NEXT_PORTS };
    let last = settings.port.saturating_add(next_ports);
    let mut tried = 0;
    for port in settings.port..=last {
        let address = SocketAddr::new(settings.address, port);
        tried += 1;
        match TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        }) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && port < last => {}
            Err(source) => {
                let address = SocketAddr::new(settings.address, settings.port);
                return Err(ListenError { address, tried, is_final, source });
            }
        }
    }
    // The range has at least one port, whose error has been returned.
    let address = SocketAddr::new(settings.address, settings.port);
    Err(ListenError { address, tried, is_final, source: ErrorKind::AddrInUse.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(port: u16, pinned: bool) -> MonitorSettings {
        MonitorSettings { port, pinned, ..MonitorSettings::default() }
    }

    /// Two neighbouring ports that are taken, and the listeners that have them.
    fn taken_ports() -> (u16, [TcpListener; 2]) {
        loop {
            let first = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = first.local_addr().unwrap().port();
            if let Some(second) =
                port.checked_add(1).and_then(|next| TcpListener::bind(("127.0.0.1", next)).ok())
            {
                return (port, [first, second]);
            }
        }
    }

    #[test]
    fn a_taken_port_leads_to_the_next_free_one_unless_it_is_pinned() {
        let (port, _taken) = taken_ports();
        let found = listen(&settings(port, false), true).unwrap().local_addr().unwrap().port();
        assert!((port + 2..=port + MAX_NEXT_PORTS).contains(&found), "{port} {found}");
        for error in [listen(&settings(port, true), true), listen(&settings(port, false), false)] {
            let error = error.unwrap_err();
            assert!(error.ends_the_daemon() && error.to_string().contains("pinned"), "{error}");
        }
    }

    #[test]
    fn an_address_of_another_machine_is_an_error_that_does_not_end_the_daemon() {
        let elsewhere = MonitorSettings { address: "192.0.2.1".parse().unwrap(), ..settings(0, false) };
        let error = listen(&elsewhere, true).unwrap_err();
        assert!(!error.ends_the_daemon() && error.to_string().contains("goes on without"), "{error}");
    }
}
