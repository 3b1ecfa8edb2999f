//! What programs are started with besides their command, if a fault changes it. Starts nothing.

use std::ffi::OsString;

use super::protocol::{LaunchSpec, StartConditions};

/// Changes to what programs of a sandbox are started with.
#[derive(Debug, Clone, Default)]
pub struct StartChanges {
    /// Environment variables with their values.
    pub set: Vec<(OsString, OsString)>,
    /// Environment variables that they do not have.
    pub unset: Vec<OsString>,
    /// Their standard error is `/dev/full`.
    pub full_stderr: bool,
    /// What the process itself has.
    pub conditions: StartConditions,
}

impl StartChanges {
    /// The program with the changed environment.
    pub(super) fn changed(&self, launch: &LaunchSpec) -> LaunchSpec {
        let mut launch = launch.clone();
        let is_changed =
            |name: &OsString| self.unset.contains(name) || self.set.iter().any(|(set, _)| set == name);
        launch.env.retain(|(name, _)| !is_changed(name));
        launch.env.extend(self.set.iter().cloned());
        launch
    }
}
