//! Finds the checkpoint that a run resumes from: the newest valid one. Reads no file itself.

use super::error::{CheckpointDamage, DamageKind, ResumeError};
use super::manifest::Manifest;
use crate::state::TrainState;

/// A damaged checkpoint, and what is wrong with it.
#[derive(Debug)]
pub struct SkippedCheckpoint {
    /// Name of its directory.
    pub name: String,
    /// What is wrong with it.
    pub damage: CheckpointDamage,
}

/// What a run resumes from.
pub struct ResumePoint {
    /// `None` if there is no checkpoint: the run starts at step 0.
    pub state: Option<TrainState>,
    /// Newer checkpoints that are damaged.
    pub skipped: Vec<SkippedCheckpoint>,
}

/// Reads the checkpoint with a name.
type LoadCheckpoint<'a> = dyn Fn(&str) -> Result<(Manifest, TrainState), CheckpointDamage> + 'a;

/// How checkpoints are read and judged.
pub(super) struct Readers<'a> {
    pub(super) load: &'a LoadCheckpoint<'a>,
    pub(super) kind_of: &'a dyn Fn(&CheckpointDamage) -> DamageKind,
    pub(super) check_compatible: &'a dyn Fn(&Manifest) -> Result<(), ResumeError>,
}

/// The newest valid one of these checkpoints, which are sorted, newest first.
///
/// # Errors
/// As for `CheckpointStore::resume`.
pub(super) fn newest_valid(names: Vec<String>, readers: &Readers<'_>) -> Result<ResumePoint, ResumeError> {
    let mut skipped = Vec::new();
    for name in names {
        let damage = match (readers.load)(&name) {
            Ok((manifest, state)) => {
                (readers.check_compatible)(&manifest)?;
                return Ok(ResumePoint { state: Some(state), skipped });
            }
            Err(damage) => damage,
        };
        match (readers.kind_of)(&damage) {
            DamageKind::Damaged | DamageKind::ReadError => {
                skipped.push(SkippedCheckpoint { name, damage });
            }
            DamageKind::Machine => return Err(ResumeError::Machine { name, source: damage }),
            DamageKind::NewerFormat => return Err(ResumeError::NewerFormat { name, source: damage }),
        }
    }
    let count = skipped.len();
    let is_unreadable = |damage: &CheckpointDamage| (readers.kind_of)(damage) == DamageKind::ReadError;
    let unreadable = skipped.iter().filter(|skipped| is_unreadable(&skipped.damage)).count();
    if unreadable > 0
        && let Some(SkippedCheckpoint { damage: source, .. }) =
            skipped.into_iter().find(|skipped| is_unreadable(&skipped.damage))
    {
        return Err(ResumeError::NoneReadable { count, unreadable, source });
    }
    if count > 0 {
        Err(ResumeError::NoneValid(count))
    } else {
        Ok(ResumePoint { state: None, skipped: Vec::new() })
    }
}
