//! What a recovery can leave in the kernel after its processes have ended: sockets, System V shared memory,
//! semaphores and message queues. Finds what is left and replaces the namespace that has it. Runs in the
//! sandbox's init.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::init_error::{InitResult, with_context};
use super::protocol::NetworkFailures;
use super::sys::bring_up_loopback;

/// Files with one line per object of System V, after a heading, and empty without any object.
const SYSTEM_V_LISTS: [&str; 3] = ["/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"];
/// Numbers of sockets of the network namespace.
const SOCKET_COUNTS: [&str; 2] = ["/proc/net/sockstat", "/proc/net/sockstat6"];
/// Message queues of POSIX.
const MESSAGE_QUEUES: &str = "/dev/mqueue";
/// The largest number of closed TCP connections that the kernel remembers.
const MAX_CLOSED_CONNECTIONS: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";

/// More than the kernel writes about a network namespace, and room for a heading and an object of System V.
const MAX_LIST_BYTES: usize = 4096;

/// The namespaces of a sandbox that hold objects of the kernel.
pub(super) struct KernelObjects {
    /// Whether the sandbox has a network of its own.
    pub(super) private_network: bool,
    lists: ObjectLists,
}

/// Files of `/proc` about the present namespaces. They stay open between two recoveries: to open them takes
/// most of the time of reading them.
struct ObjectLists {
    system_v: Vec<File>,
    sockets: Vec<File>,
}

impl ObjectLists {
    fn open() -> ObjectLists {
        // What the kernel does not have has no objects either.
        let open = |paths: &[&str]| paths.iter().filter_map(|path| File::open(path).ok()).collect();
        ObjectLists { system_v: open(&SYSTEM_V_LISTS), sockets: open(&SOCKET_COUNTS) }
    }

    fn has_system_v_objects(&self) -> bool {
        self.system_v.iter().any(|list| starts_so(list, |text| text.lines().count() > 1))
    }

    /// Whether the network namespace has sockets that no process has open: those of closing TCP connections.
    fn has_sockets(&self) -> bool {
        self.sockets.iter().any(|counts| starts_so(counts, counts_sockets))
    }
}

impl KernelObjects {
    /// Prepares the present namespaces for the target.
    pub(super) fn set_up(private_network: bool) -> InitResult<KernelObjects> {
        if private_network {
            with_context("bring up the loopback interface", bring_up_loopback())?;
        }
        mount_message_queues();
        Ok(KernelObjects { private_network, lists: ObjectLists::open() })
    }

    /// Replaces the namespaces in which something is left. Returns whether it replaced one. No process of the
    /// target may be running.
    pub(super) fn reset(&mut self) -> InitResult<bool> {
        let network_used = self.private_network && self.lists.has_sockets();
        if network_used {
            with_context("create another network namespace", unshare(CloneFlags::CLONE_NEWNET))?;
            with_context("bring up the loopback interface", bring_up_loopback())?;
        }
        let ipc_used = self.lists.has_system_v_objects() || has_message_queues();
        if ipc_used {
            with_context("create another IPC namespace", unshare(CloneFlags::CLONE_NEWIPC))?;
            mount_message_queues();
        }
        if network_used || ipc_used {
            self.lists = ObjectLists::open();
        }
        Ok(network_used || ipc_used)
    }

    /// The connections that failed, by the counters of the network namespace. None with the host's network.
    pub(super) fn network_failures(&self) -> NetworkFailures {
        if !self.private_network {
            return NetworkFailures::default();
        }
        let ipv4 = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
        let ipv6 = std::fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
        let no_route_ipv6 = ipv6.lines().find_map(|line| {
            line.strip_prefix("Ip6OutNoRoutes").and_then(|number| number.trim().parse::<u64>().ok())
        });
        NetworkFailures {
            no_route: counter(&ipv4, "Ip:", "OutNoRoutes") + no_route_ipv6.unwrap_or(0),
            refused: counter(&ipv4, "Tcp:", "AttemptFails"),
        }
    }

    /// Makes the kernel forget TCP connections when they close, so that the network namespace need not be
    /// replaced after each recovery that used one: a fork server cannot change its own.
    pub(super) fn forget_closed_connections(&self) {
        if self.private_network {
            // If this fails, the namespace is replaced, and a fork server too.
            let _ = std::fs::write(MAX_CLOSED_CONNECTIONS, "0");
        }
    }
}

/// A counter of `/proc/net/snmp`, where each protocol has a line of names and a line of numbers. 0 if there is
/// none.
fn counter(text: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let mut columns = names.split_whitespace().zip(numbers.split_whitespace());
    columns.find(|(column, _)| *column == name).and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

/// Mounts the message queues of the present IPC namespace, where the host has the directory for them.
fn mount_message_queues() {
    if Path::new(MESSAGE_QUEUES).is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // If the kernel has none, no target can use them.
        let _ = mount(Some("mqueue"), MESSAGE_QUEUES, Some("mqueue"), flags, None::<&Path>);
    }
}

fn has_message_queues() -> bool {
    std::fs::read_dir(MESSAGE_QUEUES).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether what the kernel says now in a file of `/proc` begins so. What cannot be read begins in no way.
fn starts_so(file: &File, is_so: impl Fn(&str) -> bool) -> bool {
    let mut bytes = [0; MAX_LIST_BYTES];
    let text = file.read_at(&mut bytes, 0).ok().and_then(|len| std::str::from_utf8(&bytes[..len]).ok());
    text.is_some_and(is_so)
}

/// Whether the text of `/proc/net/sockstat` or `sockstat6` counts a socket of TCP or UDP.
fn counts_sockets(text: &str) -> bool {
    text.lines().any(|line| {
        let Some((protocol, counts)) = line.split_once(':') else { return false };
        let mut words = counts.split_whitespace();
        let mut is_used = false;
        while let (Some(name), Some(number)) = (words.next(), words.next()) {
            is_used |= matches!(name, "inuse" | "orphan" | "tw") && number != "0";
        }
        is_used && (protocol.starts_with("TCP") || protocol.starts_with("UDP"))
    })
}

#[cfg(test)]
mod tests {
    use super::{counter, counts_sockets};

    #[test]
    fn only_sockets_of_this_namespace_count() {
        let idle = "sockets: used 5\nTCP: inuse 0 orphan 0 tw 0 alloc 1 mem 293\nUDP: inuse 0 mem 0\n";
        assert!(!counts_sockets(idle));
        assert!(counts_sockets("TCP: inuse 0 orphan 0 tw 1 alloc 1 mem 293\n"));
        assert!(counts_sockets("UDP6: inuse 2\n"));
        assert!(!counts_sockets("FRAG: inuse 1 memory 0\n"));
    }

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "Ip: Forwarding OutNoRoutes\nIp: 2 7\nTcp: AttemptFails\nTcp: 3\n";
        assert_eq!(counter(text, "Ip:", "OutNoRoutes"), 7);
        assert_eq!(counter(text, "Tcp:", "AttemptFails"), 3);
        assert_eq!(counter(text, "Udp:", "InErrors"), 0);
    }
}
