//! The fault `bound-port`: another program listens at a port that the target wants.

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

fault!(
    /// A port that is taken.
    BoundPortDraft {
        /// The TCP port, at all IPv4 addresses of the target's network.
        port: Spanned<u16>,
    }
);

/// Listens at a port in the target's network.
#[derive(Debug, Clone)]
pub struct BoundPort {
    /// Never 0.
    pub port: u16,
}

impl CheckEffect for BoundPortDraft {
    type Checked = BoundPort;

    fn check(&self, checker: &mut Checker) -> BoundPort {
        BoundPort { port: checked_port(&self.port, checker) }
    }
}

/// A port that a program can listen at.
pub(super) fn checked_port(port: &Spanned<u16>, checker: &mut Checker) -> u16 {
    if port.value == 0 {
        checker.problems.push(port.problem("`port` must be from 1 to 65535"));
    }
    port.value
}

impl EffectSpec for BoundPort {
    fn describe(&self) -> String {
        format!("port {} taken", self.port)
    }
}
