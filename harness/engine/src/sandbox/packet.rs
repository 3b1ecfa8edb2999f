//! Sends and receives the messages of `protocol`: one message per packet of a socket, with file descriptors
//! attached. Knows no meaning of a message.
//!
//! The first byte of a packet says where the message is: behind it, or, if it is large, in a memory file whose
//! descriptor is the last one attached. Messages are encoded with postcard, in which a byte is a byte: an
//! environment of 2 MiB is a message of 2 MiB.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, RecvMsg, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{ControlReply, ControlRequest, SandboxInitRequest};
use super::sys;

/// Largest message that is sent in the packet itself. Requests that run a command, and most replies, are
/// smaller.
const MAX_INLINE_BYTES: usize = 4096;
/// Largest message. Linux accepts at most 6 MiB of arguments and environment, however large the stack may be.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// Most descriptors that a packet has: two outputs, the socket of a filter, and a memory file.
const MAX_FDS: usize = 4;
/// First byte of a packet that contains its message.
const INLINE: u8 = 0;
/// First byte of a packet whose message is in a memory file.
const IN_FILE: u8 = 1;

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

/// Sends one message with the given descriptors attached. A message that is too large fails with E2BIG, as the
/// start of a program with such arguments does.
pub(super) fn send_message<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[RawFd],
) -> Result<(), Error> {
    let bytes = encode(message)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Errno::E2BIG.into());
    }
    if bytes.len() <= MAX_INLINE_BYTES {
        return send_packet(socket, &[IoSlice::new(&[INLINE]), IoSlice::new(&bytes)], fds);
    }
    let file = memory_file(&bytes)?;
    let fds: Vec<RawFd> = fds.iter().copied().chain([file.as_raw_fd()]).collect();
    send_packet(socket, &[IoSlice::new(&[IN_FILE])], &fds)
}

fn send_packet(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>], fds: &[RawFd]) -> Result<(), Error> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(Error::from),
        }
    }
}

/// A file in memory with these bytes, which nobody can change any more.
pub(super) fn memory_file(bytes: &[u8]) -> Result<File, Error> {
    let mut file = File::from(memfd_create("message", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Receives one message. Returns `None` if the other side has closed the socket.
pub(super) fn receive_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<Packet<T>>, Error> {
    let mut bytes = [0; 1 + MAX_INLINE_BYTES];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let (len_bytes, mut fds) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) => break (received.bytes, attached_fds(&received)?),
        }
    };
    let message = match bytes[..len_bytes].split_first() {
        None => return Ok(None),
        Some((&INLINE, message)) => decode(message)?,
        Some((&IN_FILE, [])) => {
            let file = fds.pop().ok_or_else(|| invalid_data("a packet has no memory file"))?;
            decode(&read_memory_file(&File::from(file))?)?
        }
        Some(_) => return Err(invalid_data("a packet has an unknown form")),
    };
    Ok(Some(Packet { message, fds }))
}

/// The descriptors that came with a packet. Fails if the packet or its descriptors did not arrive whole.
fn attached_fds(received: &RecvMsg<'_, '_, ()>) -> Result<Vec<OwnedFd>, Error> {
    let fds = received.cmsgs()?.flat_map(sys::received_fds).collect();
    if received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(invalid_data("a packet was cut off"));
    }
    Ok(fds)
}

fn read_memory_file(file: &File) -> Result<Vec<u8>, Error> {
    let len_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if len_bytes > MAX_MESSAGE_BYTES {
        return Err(invalid_data("a message is too large"));
    }
    let mut bytes = vec![0; len_bytes];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn invalid_data(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    postcard::to_allocvec(message).map_err(Error::other)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(invalid_data("a message has bytes behind its end")),
        Err(error) => Err(Error::new(ErrorKind::InvalidData, error)),
    }
}

/// Decodes a message as a request to init or as a reply of init, and returns whether it is one. For fuzzing and
/// tests.
///
/// # Panics
/// If a decoded message changes when it is encoded and decoded again.
#[doc(hidden)]
pub fn check_packet_round_trip(is_request: bool, message: &[u8]) -> bool {
    fn check<T: Serialize + DeserializeOwned>(message: &[u8]) -> bool {
        let Ok(message) = decode::<T>(message) else { return false };
        let encoded = encode(&message).unwrap_or_default();
        let reencoded = decode::<T>(&encoded).ok().and_then(|decoded| encode(&decoded).ok());
        assert_eq!(
            reencoded.as_ref(),
            Some(&encoded),
            "a message changes if it is encoded and decoded again"
        );
        true
    }
    if is_request {
        // Each of the two types is checked.
        check::<SandboxInitRequest>(message) | check::<ControlRequest>(message)
    } else {
        check::<ControlReply>(message)
    }
}

/// Sends descriptors, with one byte.
pub(super) fn send_fds(socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    send_byte_with_fds(socket, b'f', fds)
}

/// Sends descriptors with a byte that says what they are for.
pub(super) fn send_byte_with_fds(
    socket: BorrowedFd<'_>,
    byte: u8,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    send_packet(socket, &[IoSlice::new(&[byte])], &fds)
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStringExt;

    use super::super::protocol::{CommandRunner, LaunchSpec};
    use super::*;

    /// A request with one argument of this length, of all byte values but 0.
    fn request(len_bytes: usize) -> ControlRequest {
        let argument: Vec<u8> = (0..len_bytes).map(|index| (index % 255) as u8 + 1).collect();
        let argument = OsString::from_vec(argument);
        let launch = LaunchSpec {
            argv: vec!["program".into(), argument.clone()],
            env: vec![("NAME".into(), argument)],
            cwd: Some(OsString::from_vec(b"/not-\xff-utf-8".to_vec()).into()),
        };
        ControlRequest::StoreCommand { launch, runner: CommandRunner::NewProcess, patterns: Vec::new() }
    }

    fn send_and_receive(request: &ControlRequest, fds: &[RawFd]) -> Result<Packet<ControlRequest>, Error> {
        let sockets = PacketSocketPair::new()?;
        send_message(sockets.theirs.as_fd(), request, fds)?;
        receive_message(sockets.ours.as_fd())?.ok_or_else(|| invalid_data("nothing arrived"))
    }

    #[test]
    fn messages_of_all_sizes_arrive_as_they_were_sent() {
        for len_bytes in [0, 1, 1000, 2020, 2030, 2040, 2050, 40_000, 130_000, 1 << 20, 4_000_000] {
            let sent = request(len_bytes);
            let fd = std::io::stdin();
            let received = send_and_receive(&sent, &[fd.as_raw_fd()]).expect("it arrives");
            assert!(encode(&received.message).ok() == encode(&sent).ok(), "{len_bytes} bytes were changed");
            assert_eq!(received.fds.len(), 1, "{len_bytes} bytes");
        }
    }

    #[test]
    fn a_message_above_the_bound_is_refused_as_the_kernel_refuses_long_arguments() {
        let refused = send_and_receive(&request(MAX_MESSAGE_BYTES / 2), &[]).err();
        assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(Errno::E2BIG as i32));
    }

    #[test]
    fn packets_of_another_form_are_errors() {
        for bytes in [&[2, 0][..], &[IN_FILE], &[IN_FILE, 1], &[INLINE], &[INLINE, 255], &[INLINE, 0, 0, 0]] {
            let sockets = PacketSocketPair::new().expect("a socket");
            send_packet(sockets.theirs.as_fd(), &[IoSlice::new(bytes)], &[]).expect("it is sent");
            let received = receive_message::<ControlReply>(sockets.ours.as_fd());
            assert!(received.is_err(), "{bytes:?}");
        }
    }
}
