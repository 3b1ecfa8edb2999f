//! A port that is taken in the target's network: a socket of the sandbox that listens there and answers nobody.
//! Knows no trigger.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::listen_at;

/// A port at which something listens.
pub(super) struct TakenPort {
    port: u16,
    socket: Option<OwnedFd>,
    /// Why it could not be taken.
    refused: Option<Errno>,
}

impl TakenPort {
    pub(super) fn new(port: u16) -> TakenPort {
        TakenPort { port, socket: None, refused: None }
    }
}

impl InjectableFault for TakenPort {
    fn mechanism(&self) -> String {
        format!("a socket that listens at port {} in the target's network", self.port)
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let socket = context.sandbox.tcp_socket()?;
        match listen_at(&socket, Ipv4Addr::UNSPECIFIED, self.port) {
            Ok(()) => self.socket = Some(socket),
            Err(error) => self.refused = Some(error),
        }
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.socket.is_some().then(|| format!("port {} is taken: a socket listens there", self.port))
    }

    fn revert(&mut self, _: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.socket.take().map(|_| format!("port {} is free again", self.port)))
    }

    fn missing_evidence(&self) -> String {
        match self.refused {
            Some(Errno::EADDRINUSE) => format!(
                "port {} was taken already, perhaps by the target: inject the fault before it starts",
                self.port
            ),
            Some(error) => format!("port {} could not be taken: {error}", self.port),
            None => "no socket was made".into(),
        }
    }
}
