//! Sends and receives the messages of `protocol`: one JSON value per packet of a socket, with file descriptors
//! attached. Knows no meaning of a message.

use std::io::{Error, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{ControlReply, ControlRequest, SandboxInitRequest};
use super::sys;

/// Largest size of a packet. Argument lists and environments must fit into one.
const MAX_PACKET_BYTES: usize = 160 * 1024;
/// Most descriptors that a message has: two outputs and the socket of a filter.
const MAX_FDS: usize = 3;

/// A received message with the descriptors that were attached.
pub(super) struct Packet<T> {
    pub(super) message: T,
    pub(super) fds: Vec<OwnedFd>,
}

/// The two ends of a new socket that carries packets.
pub(super) struct PacketSocketPair {
    pub(super) ours: OwnedFd,
    pub(super) theirs: OwnedFd,
}

impl PacketSocketPair {
    /// Makes a socket. Both ends are closed in programs that are started.
    pub(super) fn new() -> Result<PacketSocketPair, Error> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok(PacketSocketPair { ours, theirs })
    }
}

/// Sends one packet with the given descriptors attached.
pub(super) fn send_message<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[RawFd],
) -> Result<(), Error> {
    let bytes = encode(message)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(Error::from),
        }
    }
}

/// Receives one packet. Returns `None` if the other side has closed the socket.
pub(super) fn receive_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<Packet<T>>, Error> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let (len_bytes, fds) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let fds: Vec<OwnedFd> = received.cmsgs()?.flat_map(sys::received_fds).collect();
                break (received.bytes, fds);
            }
        }
    };
    if len_bytes == 0 {
        return Ok(None);
    }
    decode(&bytes[..len_bytes]).map(|message| Some(Packet { message, fds }))
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(message).map_err(Error::other)
}

fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(packet).map_err(Error::other)
}

/// Decodes a packet as a request to init or as a reply of init. For fuzzing and tests.
///
/// # Panics
/// If a decoded message changes when it is encoded and decoded again.
#[doc(hidden)]
pub fn check_packet_round_trip(is_request: bool, packet: &[u8]) {
    fn check<T: Serialize + DeserializeOwned>(packet: &[u8]) {
        let Ok(message) = decode::<T>(packet) else { return };
        let encoded = encode(&message).unwrap_or_default();
        let reencoded = decode::<T>(&encoded).ok().and_then(|decoded| encode(&decoded).ok());
        assert_eq!(
            reencoded.as_ref(),
            Some(&encoded),
            "a message changes if it is encoded and decoded again"
        );
    }
    if is_request {
        check::<ControlRequest>(packet);
        check::<SandboxInitRequest>(packet);
    } else {
        check::<ControlReply>(packet);
    }
}

/// Sends one descriptor.
pub(super) fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Error> {
    let rights = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"f")], &control, flags, None)?;
    Ok(())
}

/// Receives one descriptor. Returns `None` if the other side has closed the socket.
pub(super) fn receive_fd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let (mut byte, mut control) = ([0], cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                return Ok(received.cmsgs()?.flat_map(sys::received_fds).next());
            }
        }
    }
}
