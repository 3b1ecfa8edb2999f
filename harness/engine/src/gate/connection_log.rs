//! The connections that a target tried to make and that nobody answered, each once. Knows nothing of how they
//! were seen.

use std::collections::BTreeMap;

use scenarios::{RefusedPeer, SandboxHint};

/// At most this many different connections are kept.
const MAX_CONNECTIONS: usize = 64;

/// A connection that the target tried to make, or a packet that it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionAttempt {
    /// The name of the program, such as `python3`.
    pub program: String,
    /// The address, such as `192.0.2.1:443` or `/run/server.sock`.
    pub address: String,
    /// Why nobody answers in a network of the sandbox's own. `None`: somebody does, or nothing is known.
    pub refused_by: Option<RefusedPeer>,
    /// The name that was looked up, if it could be read.
    pub looked_up: Option<String>,
}

/// Which connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ConnectionKey {
    program: String,
    address: String,
    /// The name that was looked up.
    looked_up: Option<String>,
}

/// The connections that the target tried to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionLog {
    /// What refused each of them, and how often. `None`: somebody has answered, if not at once.
    attempts: BTreeMap<ConnectionKey, Option<RefusedCount>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RefusedCount {
    peer: RefusedPeer,
    count: u64,
}

impl ConnectionLog {
    /// Adds an attempt.
    pub fn add(&mut self, attempt: ConnectionAttempt) {
        let ConnectionAttempt { program, address, refused_by, looked_up } = attempt;
        let key = ConnectionKey { program, address, looked_up };
        if self.attempts.len() >= MAX_CONNECTIONS && !self.attempts.contains_key(&key) {
            return;
        }
        let Some(peer) = refused_by else {
            self.attempts.insert(key, None);
            return;
        };
        // An address at which somebody answered stays one.
        let known = self.attempts.entry(key).or_insert(Some(RefusedCount { peer, count: 0 }));
        known.iter_mut().for_each(|known| known.count += 1);
    }

    /// What a sandbox has seen, with these connections in place of the numbers of all of their kind.
    pub fn named_in(&self, mut seen: Vec<SandboxHint>) -> Vec<SandboxHint> {
        let named = self.hints();
        let has = |peers: &[RefusedPeer]| {
            let is = |hint: &SandboxHint| matches!(hint, SandboxHint::RefusedConnection { peer, .. } if peers.contains(peer));
            named.iter().any(is)
        };
        let (routes, listeners) = (
            has(&[RefusedPeer::NoRoute, RefusedPeer::NameServer]),
            has(&[RefusedPeer::NothingListens, RefusedPeer::NameServer]),
        );
        seen.retain(|hint| match hint {
            SandboxHint::NoRoute { .. } => !routes,
            SandboxHint::NothingListens { .. } => !listeners,
            _ => true,
        });
        [named, seen].concat()
    }

    /// The connections that nobody answered, for people.
    fn hints(&self) -> Vec<SandboxHint> {
        let named = |key: &ConnectionKey| {
            let is_same = |other: &ConnectionKey| {
                other.looked_up.is_some() && (&other.program, &other.address) == (&key.program, &key.address)
            };
            key.looked_up.is_some() || !self.attempts.keys().any(is_same)
        };
        // A name server that was asked for a name was connected to first.
        let refused = self.attempts.iter().filter(|(key, _)| named(key));
        let hint = |(key, refused): (&ConnectionKey, &Option<RefusedCount>)| {
            let RefusedCount { peer, count } = (*refused)?;
            let ConnectionKey { program, address, looked_up } = key.clone();
            Some(SandboxHint::RefusedConnection { program, address, peer, looked_up, count })
        };
        refused.filter_map(hint).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(address: &str, refused_by: Option<RefusedPeer>, looked_up: Option<&str>) -> ConnectionAttempt {
        let looked_up = looked_up.map(str::to_owned);
        ConnectionAttempt { program: "python3".into(), address: address.into(), refused_by, looked_up }
    }

    #[test]
    fn a_connection_that_succeeds_in_the_end_is_no_hint_and_others_are_counted() {
        let mut log = ConnectionLog::default();
        for _ in 0..3 {
            log.add(attempt("192.0.2.1:443", Some(RefusedPeer::NoRoute), None));
            log.add(attempt("127.0.0.1:29500", Some(RefusedPeer::NothingListens), None));
        }
        log.add(attempt("127.0.0.1:29500", None, None));
        log.add(attempt("127.0.0.1:29500", Some(RefusedPeer::NothingListens), None));
        log.add(attempt("127.0.0.53:53", Some(RefusedPeer::NameServer), None));
        log.add(attempt("127.0.0.53:53", Some(RefusedPeer::NameServer), Some("huggingface.co")));
        let seen = vec![
            SandboxHint::NoRoute { count: 3 },
            SandboxHint::LinkLeadsOutside { link: "a".into(), to: "b".into() },
        ];
        assert_eq!(log.named_in(seen.clone())[2..], seen[1..]);
        assert_eq!(ConnectionLog::default().named_in(seen.clone()), seen);
        let hints: Vec<String> = log.hints().iter().map(ToString::to_string).collect();
        assert_eq!(hints.len(), 2, "{hints:?}");
        assert!(hints[0].contains("`huggingface.co`") && hints[0].contains("`127.0.0.53:53`"), "{hints:?}");
        assert!(hints[1].contains("`192.0.2.1:443` 3 times"), "{hints:?}");
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        let mut log = ConnectionLog::default();
        (0..1000).for_each(|port| {
            log.add(attempt(&format!("192.0.2.1:{port}"), Some(RefusedPeer::NoRoute), None))
        });
        assert_eq!(log.hints().len(), MAX_CONNECTIONS);
    }
}
