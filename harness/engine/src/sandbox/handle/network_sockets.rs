//! Sockets in the sandbox's network, for the harness: init makes them, because a socket stays in the network of
//! the process that has made it. Sends and receives nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{Backlog, SockaddrIn, bind, connect, listen};

use super::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::init_client::unexpected_reply;
use crate::sandbox::packet::{PacketSocketPair, receive_fd};
use crate::sandbox::protocol::{ControlReply, ControlRequest};

/// Connections that a listening socket keeps waiting.
const BACKLOG: i32 = 16;

impl Sandbox {
    /// A new TCP socket in the sandbox's network.
    ///
    /// # Errors
    /// If it can't be made, or init has ended.
    pub fn tcp_socket(&self) -> Result<OwnedFd, SandboxError> {
        let sockets = PacketSocketPair::new().map_err(SandboxError::system("make a socket"))?;
        match self.parts.client.request(&ControlRequest::MakeTcpSocket, &[sockets.theirs.as_raw_fd()])? {
            ControlReply::Done { .. } => {}
            other => return Err(unexpected_reply("make a socket", other)),
        }
        drop(sockets.theirs);
        let received = receive_fd(sockets.ours.as_fd()).map_err(SandboxError::system("receive a socket"))?;
        received.ok_or(SandboxError::InitGone)
    }
}

/// Lets a socket listen at an address.
///
/// # Errors
/// If the address is taken, or the kernel refuses it.
pub fn listen_at(socket: &OwnedFd, address: Ipv4Addr, port: u16) -> Result<(), Errno> {
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))?;
    listen(socket, Backlog::new(BACKLOG)?)
}

/// Connects a socket.
///
/// # Errors
/// If nothing listens at the address, or the kernel refuses it.
pub fn connect_to(socket: &OwnedFd, address: Ipv4Addr, port: u16) -> Result<(), Errno> {
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))
}
