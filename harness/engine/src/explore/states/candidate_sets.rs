//! The candidates that were enumerated, one for each persisted set: those with equal sets leave equal trees.
//! Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::crash_candidate::CrashCandidate;
use super::crash_state::{CrashKind, Witness};
use super::persisted_set::PersistedSetHasher;
use super::recording_index::RecordingIndex;
use crate::explore::record::Recording;

/// A new persisted set costs as many steps as its tree has operations, and these for its digest.
pub(super) const STEPS_OF_SET: u64 = 32;

/// The distinct persisted sets.
pub(super) struct CandidateSets {
    /// Many crash points share one persisted set. It has one witness for each kind of crash.
    sets: Vec<Witnesses>,
    set_indexes: HashMap<u128, u32>,
    hasher: PersistedSetHasher,
    /// What it cost so far: the operations of all trees, or the size of those that are computed from another one.
    pub(super) steps: u64,
    /// How many lost units are held.
    pub(super) units: u64,
}

/// The witnesses of one persisted set, one for each kind of crash.
#[derive(Default)]
pub(super) struct Witnesses {
    by_crash: Vec<(CrashKind, Witness)>,
}

impl CandidateSets {
    pub(super) fn new(recording: &Recording) -> CandidateSets {
        CandidateSets {
            sets: Vec::new(),
            set_indexes: HashMap::new(),
            hasher: PersistedSetHasher::new(recording),
            steps: 0,
            units: 0,
        }
    }

    /// Adds a candidate for a kind of crash.
    pub(super) fn add(
        &mut self,
        mut candidate: CrashCandidate,
        crash: CrashKind,
        index: &RecordingIndex<'_>,
    ) {
        let acknowledged = index.acknowledged(candidate.op_count as usize);
        let cost = candidate.lost.len() as u64;
        let set = match self.set_indexes.entry(self.hasher.hash(&candidate)) {
            Entry::Occupied(known) => *known.get() as usize,
            Entry::Vacant(new) => {
                new.insert(self.sets.len() as u32);
                self.sets.push(Witnesses::default());
                let op_count = candidate.op_count as usize;
                let of_tree = match candidate.is_prefix() {
                    true => index.tree_steps(op_count),
                    false => index.file_operations(op_count).into(),
                };
                self.steps += of_tree + STEPS_OF_SET;
                self.sets.len() - 1
            }
        };
        self.steps += 1 + cost / 8;
        let set = &mut self.sets[set];
        if !set.wants(crash, acknowledged) {
            return;
        }
        // Most kinds of crash have the same candidate for it.
        let is_same = |known: &&Witness| known.candidate == candidate;
        match set.by_crash.iter().map(|(_, known)| known).find(is_same) {
            Some(known) => candidate.lost = Arc::clone(&known.candidate.lost),
            None => self.units += cost,
        }
        set.keep(crash, Witness { candidate, acknowledged });
    }

    /// The sets with their witnesses.
    pub(super) fn take(&mut self) -> Vec<Witnesses> {
        self.set_indexes = HashMap::new();
        std::mem::take(&mut self.sets)
    }
}

impl Witnesses {
    /// Whether a witness with this acknowledged step would be the strictest of its kind of crash.
    fn wants(&self, crash: CrashKind, acknowledged: Option<u64>) -> bool {
        let known = self.by_crash.iter().find(|(known, _)| *known == crash);
        known.is_none_or(|(_, witness)| witness.acknowledged < acknowledged)
    }

    fn keep(&mut self, crash: CrashKind, witness: Witness) {
        match self.by_crash.iter_mut().find(|(known, _)| *known == crash) {
            Some((_, known)) => *known = witness,
            None => self.by_crash.push((crash, witness)),
        }
    }

    /// Adds those of a set that leaves the same tree. Of each kind of crash, the strictest is kept.
    pub(super) fn merge(&mut self, other: Witnesses) {
        for (crash, witness) in other.by_crash {
            if self.wants(crash, witness.acknowledged) {
                self.keep(crash, witness);
            }
        }
    }

    /// The candidate of the first kind of crash.
    pub(super) fn candidate(&self) -> Option<&CrashCandidate> {
        let first = self.by_crash.iter().min_by_key(|(crash, _)| *crash);
        first.map(|(_, witness)| &witness.candidate)
    }

    /// The kinds of crash.
    pub(super) fn crash_kinds(&self) -> impl Iterator<Item = CrashKind> + '_ {
        self.by_crash.iter().map(|(crash, _)| *crash)
    }

    pub(super) fn into_map(self) -> std::collections::BTreeMap<CrashKind, Witness> {
        self.by_crash.into_iter().collect()
    }
}
