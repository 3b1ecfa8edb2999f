//! Connections that the target tries to make: decodes the calls and addresses, and finds out whether somebody
//! answers at the address. The kernel performs the calls; nothing is changed.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use scenarios::RefusedPeer;

use super::connection_log::ConnectionAttempt;
use super::stat::FileStat;
use super::target_thread::TargetThread;

/// Port of name servers.
const NAME_SERVER_PORT: u16 = 53;
/// Length of the header of a DNS message (RFC 1035, 4.1.1).
const DNS_HEADER_BYTES: usize = 12;
/// At most this many bytes of a message are read. A name has at most 255.
const MAX_DNS_BYTES: usize = 512;
/// State of a TCP socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// Flag of a Unix socket that listens, in `/proc/net/unix` (`__SO_ACCEPTCON`).
const ACCEPTS_CONNECTIONS: &str = "00010000";

/// A part of the target's memory that holds the address of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressArgument {
    pub(super) address: u64,
    pub(super) len_bytes: u64,
}

/// A call that sends to, or connects to, an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionCall {
    /// `connect`.
    Connect { to: AddressArgument },
    /// `sendto` with an address. The message begins at `message_address`.
    SendTo { message_address: u64, message_bytes: u64, to: AddressArgument },
    /// `sendmmsg`, which name resolvers use. The first message is at `messages_address`.
    SendMany { fd: i32, messages_address: u64 },
}

/// Decodes a call. Returns `None` for a call that makes no connection.
pub(super) fn decode_connection_call(number: i64, args: [u64; 6]) -> Option<ConnectionCall> {
    let [a, b, c, _, e, f] = args;
    match number {
        libc::SYS_connect => {
            Some(ConnectionCall::Connect { to: AddressArgument { address: b, len_bytes: c } })
        }
        libc::SYS_sendto => Some(ConnectionCall::SendTo {
            message_address: b,
            message_bytes: c,
            to: AddressArgument { address: e, len_bytes: f },
        }),
        libc::SYS_sendmmsg => Some(ConnectionCall::SendMany { fd: a as i32, messages_address: b }),
        _ => None,
    }
}

/// What an address names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SocketPeer {
    Ip(SocketAddr),
    Path(PathBuf),
    /// A name without a file, which begins with a zero byte.
    Abstract(String),
}

/// What a call tries. `None`: its address is of another kind, or cannot be read.
pub(super) fn attempt_of(thread: &TargetThread, call: ConnectionCall) -> Option<ConnectionAttempt> {
    let (peer, message) = match call {
        ConnectionCall::Connect { to } => (read_peer(thread, to)?, None),
        ConnectionCall::SendTo { message_address, message_bytes, to } => {
            (read_peer(thread, to)?, Some((message_address, message_bytes)))
        }
        ConnectionCall::SendMany { fd, messages_address } => {
            let (address, len_bytes) = first_message(thread, messages_address)?;
            (connected_peer(thread, fd)?, Some((address, len_bytes)))
        }
    };
    let is_name_server = matches!(&peer, SocketPeer::Ip(to) if to.port() == NAME_SERVER_PORT);
    if matches!(call, ConnectionCall::SendMany { .. }) && !is_name_server {
        return None;
    }
    let message = message.filter(|_| is_name_server);
    let looked_up = message.and_then(|(address, len_bytes)| {
        let mut bytes = vec![0; MAX_DNS_BYTES.min(usize::try_from(len_bytes).unwrap_or(0))];
        let read = thread.read_memory(address, &mut bytes).ok()?;
        dns_question(&bytes[..read])
    });
    let refused_by = match refused_by(thread, &peer) {
        Some(RefusedPeer::NoRoute | RefusedPeer::NothingListens) if is_name_server => {
            Some(RefusedPeer::NameServer)
        }
        other => other,
    };
    Some(ConnectionAttempt {
        program: thread.program_name(),
        address: match &peer {
            SocketPeer::Ip(to) => to.to_string(),
            SocketPeer::Path(path) => thread.absolute_path(path).to_string_lossy().into_owned(),
            SocketPeer::Abstract(name) => format!("@{name}"),
        },
        refused_by,
        looked_up,
    })
}

/// The bytes of the first message of a `sendmmsg`: their address and number.
fn first_message(thread: &TargetThread, messages_address: u64) -> Option<(u64, u64)> {
    let mut header = [0; std::mem::size_of::<libc::msghdr>()];
    (thread.read_memory(messages_address, &mut header).ok()? == header.len()).then_some(())?;
    let iovec_address = word_at(&header, std::mem::offset_of!(libc::msghdr, msg_iov))?;
    let mut iovec = [0; std::mem::size_of::<libc::iovec>()];
    (thread.read_memory(iovec_address, &mut iovec).ok()? == iovec.len()).then_some(())?;
    let base = word_at(&iovec, std::mem::offset_of!(libc::iovec, iov_base))?;
    Some((base, word_at(&iovec, std::mem::offset_of!(libc::iovec, iov_len))?))
}

fn word_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// The address that a datagram socket is connected to.
fn connected_peer(thread: &TargetThread, fd: i32) -> Option<SocketPeer> {
    let socket = UdpSocket::from(thread.duplicate_fd(fd).ok()?);
    socket.peer_addr().ok().map(SocketPeer::Ip)
}

fn read_peer(thread: &TargetThread, argument: AddressArgument) -> Option<SocketPeer> {
    let len_bytes = usize::try_from(argument.len_bytes).ok()?.min(std::mem::size_of::<libc::sockaddr_un>());
    let mut bytes = vec![0; len_bytes];
    let read = thread.read_memory(argument.address, &mut bytes).ok()?;
    peer_of(&bytes[..read])
}

/// Decodes a `sockaddr`.
fn peer_of(bytes: &[u8]) -> Option<SocketPeer> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let port = || Some(u16::from_be_bytes(*rest.first_chunk::<2>()?));
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let address: [u8; 4] = rest.get(2..6)?.try_into().ok()?;
            Some(SocketPeer::Ip(SocketAddr::from((Ipv4Addr::from(address), port()?))))
        }
        libc::AF_INET6 => {
            // After the port come four bytes of flow information.
            let address: [u8; 16] = rest.get(6..22)?.try_into().ok()?;
            let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
            Some(SocketPeer::Ip(SocketAddr::from((address, port()?))))
        }
        libc::AF_UNIX if rest.first() == Some(&0) => {
            Some(SocketPeer::Abstract(String::from_utf8_lossy(&rest[1..]).into_owned()))
        }
        libc::AF_UNIX => {
            let path = rest.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
            Some(SocketPeer::Path(Path::new(std::ffi::OsStr::from_bytes(path)).to_path_buf()))
        }
        _ => None,
    }
}

/// Why nobody answers at this address in a network with a loopback device only.
fn refused_by(thread: &TargetThread, peer: &SocketPeer) -> Option<RefusedPeer> {
    match peer {
        // The kernel takes an unspecified address for the loopback one.
        SocketPeer::Ip(to) if to.ip().is_loopback() || to.ip().is_unspecified() => {
            (!has_listener(thread, to.port())).then_some(RefusedPeer::NothingListens)
        }
        SocketPeer::Ip(_) => Some(RefusedPeer::NoRoute),
        SocketPeer::Path(path) => is_socket_of_host(thread, path).then_some(RefusedPeer::SocketFile),
        SocketPeer::Abstract(name) => {
            let listens = |table: &str| {
                let ours = format!("@{name}");
                let listens = |line: &&str| line.split_whitespace().nth(3) == Some(ACCEPTS_CONNECTIONS);
                table.lines().filter(listens).any(|line| line.split_whitespace().nth(7) == Some(&ours))
            };
            let on_host = std::fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
            (listens(&on_host) && !listens(&thread.network_table("unix"))).then_some(RefusedPeer::SocketName)
        }
    }
}

/// Whether a path is a socket on the host, and the target sees another file there: that of an overlay, behind
/// which nobody listens.
fn is_socket_of_host(thread: &TargetThread, path: &Path) -> bool {
    let path = thread.absolute_path(path);
    let opened = File::options().read(true).custom_flags(libc::O_PATH).open(&path);
    let on_host = opened.ok().and_then(|file| FileStat::of_file(file.as_fd()).ok());
    let (Some(on_host), Some(seen)) = (on_host, thread.stat_of(&path)) else { return false };
    on_host.file_type() == libc::S_IFSOCK && on_host.file_id != seen.file_id
}

/// Whether a TCP socket listens on this port, or a UDP socket is bound to it, in the target's network.
fn has_listener(thread: &TargetThread, port: u16) -> bool {
    let tables = [("tcp", Some(LISTENS)), ("tcp6", Some(LISTENS)), ("udp", None), ("udp6", None)];
    let port = format!(":{port:04X}");
    tables.iter().any(|(table, state)| {
        thread.network_table(table).lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let has_port = fields.next().is_some_and(|local| local.ends_with(&port));
            has_port && state.is_none_or(|state| fields.nth(1) == Some(state))
        })
    })
}

/// The name in the first question of a DNS query (RFC 1035, 4.1.2).
fn dns_question(message: &[u8]) -> Option<String> {
    let mut rest = message.get(DNS_HEADER_BYTES..)?;
    let mut labels = Vec::new();
    loop {
        let (len_bytes, after) = rest.split_first()?;
        if *len_bytes == 0 {
            break;
        }
        let (label, next) = after.split_at_checked(usize::from(*len_bytes))?;
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        labels.push(label.iter().all(is_of_name).then(|| String::from_utf8_lossy(label))?);
        rest = next;
    }
    (!labels.is_empty()).then(|| labels.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_addresses_is_decoded_and_a_short_one_is_not() {
        let family = |family: i32| (family as u16).to_ne_bytes().to_vec();
        let v4 = [family(libc::AF_INET), vec![1, 187, 192, 0, 2, 1], vec![0; 8]].concat();
        assert_eq!(peer_of(&v4), Some(SocketPeer::Ip("192.0.2.1:443".parse().unwrap())));
        assert_eq!(peer_of(&v4[..7]), None);
        let v6 = |last: [u8; 6]| {
            [family(libc::AF_INET6), vec![0, 53, 0, 0, 0, 0], vec![0; 10], last.into()].concat()
        };
        assert_eq!(peer_of(&v6([0, 0, 0, 0, 0, 1])), Some(SocketPeer::Ip("[::1]:53".parse().unwrap())));
        // IPv4 within IPv6.
        assert_eq!(
            peer_of(&v6([255, 255, 127, 0, 0, 1])),
            Some(SocketPeer::Ip("127.0.0.1:53".parse().unwrap()))
        );
        let path = [family(libc::AF_UNIX), b"/run/x\0\0".to_vec()].concat();
        assert_eq!(peer_of(&path), Some(SocketPeer::Path("/run/x".into())));
        let name = [family(libc::AF_UNIX), b"\0name".to_vec()].concat();
        assert_eq!(peer_of(&name), Some(SocketPeer::Abstract("name".into())));
        for other in [family(libc::AF_UNIX), family(libc::AF_NETLINK), vec![1]] {
            assert_eq!(peer_of(&other), None);
        }
    }

    #[test]
    fn the_name_in_a_query_is_read_and_other_bytes_are_none() {
        let header = [0; DNS_HEADER_BYTES].to_vec();
        let query = [header.clone(), b"\x0bhuggingface\x02co\0\0\x01\0\x01".to_vec()].concat();
        assert_eq!(dns_question(&query).as_deref(), Some("huggingface.co"));
        for cut in 0..query.len() - 4 {
            assert_eq!(dns_question(&query[..cut]), None, "{cut}");
        }
        assert_eq!(dns_question(&[header, b"\x03a b\0".to_vec()].concat()), None);
    }
}
