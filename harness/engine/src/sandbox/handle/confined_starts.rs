//! Programs that are started under rules of Landlock.

use std::path::Path;

use super::Sandbox;
use crate::landlock::LandlockRules;
use crate::locks::LockExt;
use crate::sandbox::confinement::Confinement;
use crate::sandbox::error::SandboxError;

impl Sandbox {
    /// Confines programs that are started from now on, in place of an earlier confinement. `None`: no more. What runs
    /// already stays as it is.
    pub fn confine_starts(&self, confinement: Option<Confinement>) {
        *self.confinement.locked() = confinement;
    }

    /// The rules for a program that is started now.
    pub(super) fn rules_of_start(&self) -> Result<Option<LandlockRules>, SandboxError> {
        let confinement = self.confinement.locked().clone();
        confinement.map(|confinement| confinement.rules(|path: &Path| self.host_path(path))).transpose()
    }
}
