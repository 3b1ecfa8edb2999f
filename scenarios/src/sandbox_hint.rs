//! What a target met in the sandbox that it would not have met outside of it, with the one text for people.
//! Knows nothing of how it was seen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that the target met in the sandbox, and what to do about it. Its text is its `Display`.
///
/// Paths are as the target names them. Bytes that are not UTF-8 are replaced, so that a record can hold them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxHint {
    /// A write was refused, because the file system is read-only in the sandbox.
    RefusedWrite {
        /// What should have been written.
        path: String,
    },
    /// Nobody in the sandbox answers at an address that a program connected or sent to.
    RefusedConnection {
        /// The program, such as `python3`.
        program: String,
        /// The address, such as `192.0.2.1:443` or `/run/server.sock`.
        address: String,
        /// Why nobody answers.
        peer: RefusedPeer,
        /// The name that was asked for, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        looked_up: Option<String>,
        /// How often it was tried.
        count: u64,
    },
    /// Connections to other machines failed, because the sandbox has a network of its own.
    NoRoute {
        /// Number of connections and packets.
        count: u64,
    },
    /// Nothing in the sandbox listens at an address of this machine.
    NothingListens {
        /// Number of refused connections.
        count: u64,
    },
    /// A symbolic link in a watched directory leads outside of them.
    LinkLeadsOutside {
        /// The link.
        link: String,
        /// What it leads to.
        to: String,
    },
    /// A rename of a directory failed with `EXDEV`, because the sandbox shows the directory through an overlay.
    CrossDeviceRename {
        /// The directory.
        path: String,
    },
    /// A rename of a directory in a watched one failed with `EXDEV`, because the watched one is large and the
    /// sandbox shows it as an overlay.
    WatchedRename {
        /// The directory.
        path: String,
    },
    /// A file could not be changed, because its owner or group has no number in the sandbox.
    UnmappedOwner {
        /// The file.
        path: String,
    },
    /// The target wrote outside of the watched directories, to a copy that ends with the run.
    WroteOutside {
        /// A file, or the directory that holds all the files.
        path: String,
        /// Number of files that were written there.
        count: u64,
    },
    /// Files belong to this user in the copy that the target sees, because it may not set the real owner.
    OwnerNotKept {
        /// The first of them.
        path: String,
        /// How many there are.
        count: u64,
    },
    /// Files lack an extended attribute in the copy that the target sees.
    AttributeNotKept {
        /// The first of them.
        path: String,
        /// How many there are.
        count: u64,
    },
    /// Sockets and devices are not in the copy that the target sees.
    FileLeftOut {
        /// The first of them.
        path: String,
        /// How many there are.
        count: u64,
    },
}

/// Why nobody in the sandbox answers at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedPeer {
    /// It is an address of another machine.
    NoRoute,
    /// It is an address of this machine, where nothing in the sandbox listens.
    NothingListens,
    /// It is that of a name server.
    NameServer,
    /// It is the file of a socket of the host.
    SocketFile,
    /// It is the name of a socket of the host, without a file.
    SocketName,
}

impl RefusedPeer {
    /// What was tried.
    fn attempt(self, address: &str, looked_up: Option<&str>) -> String {
        match (self, looked_up) {
            (RefusedPeer::NameServer, Some(name)) => format!("look up the name `{name}` at `{address}`"),
            (RefusedPeer::NameServer, None) => format!("look up a name at `{address}`"),
            _ => format!("connect to `{address}`"),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            RefusedPeer::NoRoute => "no route",
            RefusedPeer::NothingListens => "nothing listens there in the sandbox",
            RefusedPeer::NameServer => "the sandbox has no name server",
            RefusedPeer::SocketFile | RefusedPeer::SocketName => "a socket of the host",
        }
    }

    /// What to do next.
    fn remedy(self, address: &str) -> String {
        const NETWORK: &str = "the sandbox has a network of its own; use `--network host`";
        match self {
            RefusedPeer::NoRoute | RefusedPeer::NameServer => format!(
                "{NETWORK}, or set the offline mode of the framework, such as `HF_HUB_OFFLINE=1` or \
                 `WANDB_MODE=offline`"
            ),
            RefusedPeer::NothingListens | RefusedPeer::SocketName => NETWORK.into(),
            RefusedPeer::SocketFile => {
                let dir = address.rsplit_once('/').map_or(".", |(dir, _)| dir);
                format!("it cannot be reached through the sandbox's view of the host; use `--writable {dir}`")
            }
        }
    }
}

impl SandboxHint {
    /// Whether it may be why a target failed. What was written outside is not: those writes succeeded.
    pub fn may_explain_failure(&self) -> bool {
        match self {
            SandboxHint::RefusedWrite { .. }
            | SandboxHint::RefusedConnection { .. }
            | SandboxHint::NoRoute { .. }
            | SandboxHint::NothingListens { .. }
            | SandboxHint::CrossDeviceRename { .. }
            | SandboxHint::WatchedRename { .. }
            | SandboxHint::UnmappedOwner { .. }
            | SandboxHint::OwnerNotKept { .. }
            | SandboxHint::AttributeNotKept { .. }
            | SandboxHint::FileLeftOut { .. } => true,
            SandboxHint::LinkLeadsOutside { .. } | SandboxHint::WroteOutside { .. } => false,
        }
    }
}

impl fmt::Display for SandboxHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SandboxHint::RefusedWrite { path } => write!(
                f,
                "the sandbox refused a write to `{path}`: allow it with `--writable {path}`, or with \
                 `writable` in the target file"
            ),
            SandboxHint::RefusedConnection { program, address, peer, looked_up, count } => {
                let what = peer.attempt(address, looked_up.as_deref());
                let times = if *count == 1 { String::new() } else { format!(" {count} times") };
                write!(f, "`{program}` tried to {what}{times} ({}): {}", peer.reason(), peer.remedy(address))
            }
            SandboxHint::NoRoute { count } => write!(
                f,
                "connections to other machines failed ({count} without a route), because the sandbox has a \
                 network of its own: allow them with `--network host`, or set the offline mode of the \
                 framework, such as `HF_HUB_OFFLINE=1` or `WANDB_MODE=offline`"
            ),
            SandboxHint::NothingListens { count } => write!(
                f,
                "{count} connections to this machine were refused: services of the host cannot be reached \
                 from the network of the sandbox; allow it with `--network host`"
            ),
            SandboxHint::LinkLeadsOutside { link, to } => write!(
                f,
                "the symbolic link `{link}` leads to `{to}`, outside of the watched directories, so no crash \
                 state contains what is there: watch it with `--watch {to}`"
            ),
            SandboxHint::CrossDeviceRename { path } => write!(
                f,
                "the sandbox refused to rename the directory `{path}` (EXDEV): watch it with \
                 `--watch {path}`, or allow writes to it with `--writable {path}`"
            ),
            SandboxHint::WatchedRename { path } => f.write_str(&refused_in_large_directory(path)),
            SandboxHint::UnmappedOwner { path } => write!(
                f,
                "the sandbox could not change `{path}`, because it does not know its owner or group: \
                 install `newuidmap` (package `uidmap`), or run as root"
            ),
            SandboxHint::WroteOutside { path, count: 1 } => write!(
                f,
                "`{path}` was written outside of the watched directories, so no crash state contains it, \
                 and the change ended with the run: watch it with `--watch`, or give it a place below \
                 `{{root}}` in the target file"
            ),
            SandboxHint::WroteOutside { path, count } => write!(
                f,
                "{count} files below `{path}` were written outside of the watched directories, so no crash \
                 state contains them, and the changes ended with the run: watch them with `--watch {path}`, or \
                 give them a place below `{{root}}` in the target file"
            ),
            SandboxHint::OwnerNotKept { path, count } => write!(
                f,
                "owner of another user, but yours in every crash state: {}; run as root to keep owners",
                and_others(path, *count)
            ),
            SandboxHint::AttributeNotKept { path, count } => write!(
                f,
                "extended attributes that no crash state has: {}; run as root, or set TMPDIR to a directory on \
                 a file system that has them",
                and_others(path, *count)
            ),
            SandboxHint::FileLeftOut { path, count } => write!(
                f,
                "sockets or devices, which no crash state contains: {}; keep them outside of the watched \
                 directories",
                and_others(path, *count)
            ),
        }
    }
}

/// What a refused rename in a large watched directory means.
fn refused_in_large_directory(path: &str) -> String {
    format!(
        "the sandbox refused to rename the directory `{path}` (EXDEV), because it shows a watched directory of \
         more than 1 GiB as an overlay; what the trainer did instead is recorded: watch less, such as only the \
         directory of new checkpoints, and the rename succeeds"
    )
}

/// The first path, and how many others there are.
fn and_others(path: &str, count: u64) -> String {
    match count {
        0 | 1 => format!("`{path}`"),
        _ => format!("`{path}` and {} more", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hint_names_what_it_is_about_and_what_to_do_next() {
        let path = || "/data/x".to_owned();
        let refused = |address: &str, peer| SandboxHint::RefusedConnection {
            program: "python3".into(),
            address: address.into(),
            peer,
            looked_up: None,
            count: 3,
        };
        let hints = [
            (SandboxHint::RefusedWrite { path: path() }, "--writable /data/x", true),
            (refused("192.0.2.1:443", RefusedPeer::NoRoute), "`192.0.2.1:443` 3 times (no route)", true),
            (refused("192.0.2.1:443", RefusedPeer::NoRoute), "--network host", true),
            (refused("127.0.0.1:6379", RefusedPeer::NothingListens), "--network host", true),
            (refused("127.0.0.53:53", RefusedPeer::NameServer), "HF_HUB_OFFLINE=1", true),
            (refused("@name", RefusedPeer::SocketName), "--network host", true),
            (refused("/run/s/x", RefusedPeer::SocketFile), "--writable /run/s", true),
            (SandboxHint::NoRoute { count: 2 }, "--network host", true),
            (SandboxHint::NothingListens { count: 2 }, "--network host", true),
            (
                SandboxHint::LinkLeadsOutside { link: "runs/best".into(), to: path() },
                "--watch /data/x",
                false,
            ),
            (SandboxHint::CrossDeviceRename { path: path() }, "--writable /data/x", true),
            (SandboxHint::WatchedRename { path: path() }, "watch less", true),
            (SandboxHint::UnmappedOwner { path: path() }, "newuidmap", true),
            (SandboxHint::WroteOutside { path: path(), count: 1 }, "--watch", false),
            (SandboxHint::WroteOutside { path: path(), count: 7 }, "7 files below `/data/x`", false),
            (SandboxHint::OwnerNotKept { path: path(), count: 1 }, "run as root", true),
            (SandboxHint::AttributeNotKept { path: path(), count: 2 }, "and 1 more", true),
            (SandboxHint::FileLeftOut { path: path(), count: 3 }, "and 2 more", true),
        ];
        for (hint, expected, may_explain) in hints {
            let text = hint.to_string();
            assert!(text.contains(expected) && text.contains(['`']), "{text}");
            assert_eq!(hint.may_explain_failure(), may_explain, "{text}");
            let json = serde_json::to_string(&hint).unwrap();
            assert_eq!(serde_json::from_str::<SandboxHint>(&json).unwrap(), hint);
        }
    }
}
