//! Why a state can't be come back from: which promise is broken, between which two operations. Pure.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::candidate::{Candidate, Leaf, Tear, Tree};
use super::content::Reader;
use super::model::BYTES;
use super::recording::{NodeId, Op, Recording, What};
use super::states::{Crash, State, Way};

/// A known pattern of a broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A file under its final name is changed where it lies.
    WrittenInPlace,
    /// The old one goes before the new one is there.
    OldDeletedFirst,
    /// A small file that names the newest one is changed before that one is there.
    MarkerFirst,
    /// A list of files is complete before the files are.
    ManifestFirst,
    /// Files that belong together are replaced one after the other.
    FilesReplacedOneByOne,
    /// The new name reached the disk, the bytes behind it did not.
    NotSyncedBeforeRename,
    /// Bytes that were called saved were not synced.
    NotSyncedBeforePromise,
    /// The bytes are there, their name is not.
    FolderNotSynced,
    /// Later changes reached the disk before earlier ones that they need.
    OrderNotEnforced,
    /// None of these.
    Other,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => "written-in-place",
            Cause::OldDeletedFirst => "old-deleted-first",
            Cause::MarkerFirst => "marker-written-first",
            Cause::ManifestFirst => "manifest-before-data",
            Cause::FilesReplacedOneByOne => "files-replaced-one-by-one",
            Cause::NotSyncedBeforeRename => "no-fsync-before-rename",
            Cause::NotSyncedBeforePromise => "not-synced-before-promise",
            Cause::FolderNotSynced => "folder-not-synced",
            Cause::OrderNotEnforced => "order-not-enforced",
            Cause::Other => "other",
        }
    }

    pub fn advice(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => {
                "write to a temporary name beside it, fsync it, rename it over the old one, fsync the folder"
            }
            Cause::OldDeletedFirst => {
                "delete the old one only after the new one is complete under its name and synced"
            }
            Cause::MarkerFirst => {
                "change the marker last, by write-aside and rename, after what it names is synced"
            }
            Cause::ManifestFirst => {
                "write the manifest last, or write everything into a temporary folder and rename that"
            }
            Cause::FilesReplacedOneByOne => {
                "put files that belong together into one folder and rename the folder"
            }
            Cause::NotSyncedBeforeRename => "fsync the file before renaming it",
            Cause::NotSyncedBeforePromise => "fsync the file before saying that it is saved",
            Cause::FolderNotSynced => {
                "fsync the folder after creating, renaming or removing in it, before saying that it is saved"
            }
            Cause::OrderNotEnforced => {
                "fsync file and folder of the earlier change before making the later one"
            }
            Cause::Other => "look at the state with the command that repeats it",
        }
    }
}

/// Finds the pattern that fits a failing state.
pub(super) fn cause_of(recording: &Recording, candidate: &Candidate, crash: Crash) -> Cause {
    let view = View::new(recording, candidate);
    match crash {
        Crash::Process => view.of_process(),
        Crash::Power(_) if candidate.lost.is_empty() && candidate.torn.is_none() => view.of_process(),
        Crash::Power(_) => view.of_power(),
    }
}

/// The save in which a moment lies: after the last promise, to the next one.
struct View<'a> {
    recording: &'a Recording,
    candidate: &'a Candidate,
    k: usize,
    from: usize,
    to: usize,
}

impl<'a> View<'a> {
    fn new(recording: &'a Recording, candidate: &'a Candidate) -> View<'a> {
        let k = candidate.k as usize;
        let promise = |op: &Op| matches!(op.what, What::Said { saved: Some(_), .. });
        let from = recording.ops[..k].iter().rposition(promise).map_or(0, |at| at + 1);
        let to = recording.ops[k..].iter().position(promise).map_or(recording.ops.len(), |at| k + at);
        View { recording, candidate, k, from, to }
    }

    fn of_process(&self) -> Cause {
        if self.in_place() {
            return Cause::WrittenInPlace;
        }
        if let Some(cause) = self.names_what_is_not_there() {
            return cause;
        }
        if self.deleted_first() {
            return Cause::OldDeletedFirst;
        }
        if self.folder_in_place() {
            return Cause::WrittenInPlace;
        }
        if self.renamed_one_by_one() {
            return Cause::FilesReplacedOneByOne;
        }
        Cause::Other
    }

    fn of_power(&self) -> Cause {
        let data: Vec<(usize, NodeId)> = self
            .candidate
            .lost
            .iter()
            .map(|unit| unit.op as usize)
            .chain(self.candidate.torn.map(|(op, _)| op as usize))
            .filter_map(|op| match self.recording.ops[op].what {
                What::Resize { node, .. } => Some((op, node)),
                _ => Some((op, self.recording.ops[op].data_node()?)),
            })
            .collect();
        if let Some((op, node)) = data.first() {
            return self.lost_data(*op, *node);
        }
        let lost: BTreeSet<usize> = self.candidate.lost.iter().map(|unit| unit.op as usize).collect();
        let first = lost.first().copied().unwrap_or(self.k);
        let promised_since = self.recording.ops[first..self.k]
            .iter()
            .any(|op| matches!(op.what, What::Said { saved: Some(_), .. }));
        if promised_since { Cause::FolderNotSynced } else { Cause::OrderNotEnforced }
    }

    fn lost_data(&self, op: usize, node: NodeId) -> Cause {
        let renamed = self.recording.ops[op..self.k].iter().enumerate().any(|(after, later)| {
            let kept = !self.candidate.lost.iter().any(|unit| unit.op as usize == op + after);
            kept && later.kind() == "rename" && self.carries(later, node)
        });
        if renamed {
            return Cause::NotSyncedBeforeRename;
        }
        if self.existed(node, op) {
            return Cause::WrittenInPlace;
        }
        let promised = self.recording.ops[op..self.k]
            .iter()
            .any(|op| matches!(op.what, What::Said { saved: Some(_), .. }));
        let renamed_later = self.recording.ops[self.k..self.to]
            .iter()
            .any(|op| op.kind() == "rename" && self.carries(op, node));
        match (promised, renamed_later) {
            (true, _) => Cause::NotSyncedBeforePromise,
            (false, true) => Cause::OrderNotEnforced,
            // Half of it lies under the name that is read, and nothing was promised yet: no sync mends that.
            (false, false) => self.names_what_is_not_there().unwrap_or(Cause::WrittenInPlace),
        }
    }

    /// Whether an operation gives a new name to the node or to a folder above it.
    fn carries(&self, op: &Op, node: NodeId) -> bool {
        let What::Names(changes) = &op.what else { return false };
        let mut at = Some(node);
        while let Some(one) = at {
            if changes.iter().any(|change| change.node == Some(one)) {
                return true;
            }
            at = self.recording.name_of(one, self.k).map(|(dir, _)| dir).filter(|dir| *dir != one);
            if (one as usize) < self.recording.roots.len() {
                return false;
            }
        }
        false
    }

    /// Had a name when the save began, or when operation `op` came, whichever is earlier.
    fn existed(&self, node: NodeId, op: usize) -> bool {
        let start = self.from.min(op);
        let created = self.recording.ops[start..op].iter().any(|one| match &one.what {
            What::Names(changes) => changes.iter().any(|change| change.node == Some(node)),
            _ => false,
        });
        !created && self.recording.name_of(node, start).is_some()
    }

    /// The write under way is to a file that keeps its name.
    fn in_place(&self) -> bool {
        let touched = |op: &Op| match op.what {
            What::Resize { node, .. } => Some(node),
            _ => op.data_node(),
        };
        let around = &self.recording.ops[self.from..self.to];
        let (before, after) = around.split_at(self.k - self.from);
        let torn = self.candidate.torn.and_then(|(op, _)| self.recording.ops[op as usize].data_node());
        // Half written: touched on both sides of the moment, or created before it and filled after it.
        let half = |node: NodeId| {
            let begun = before.iter().any(|op| touched(op) == Some(node) || self.carries(op, node));
            begun && after.iter().any(|op| touched(op) == Some(node))
        };
        let nodes: BTreeSet<NodeId> = around.iter().filter_map(touched).collect();
        nodes
            .into_iter()
            .filter(|node| torn == Some(*node) || half(*node))
            .any(|node| !after.iter().any(|op| op.kind() == "rename" && self.carries(op, node)))
    }

    /// A folder that keeps its name is there, and not yet everything in it.
    fn folder_in_place(&self) -> bool {
        let created = |op: &Op| match (&op.what, op.kind()) {
            (What::Names(changes), "mkdir") => changes[0].node,
            _ => None,
        };
        let after = &self.recording.ops[self.k..self.to];
        let filled = |folder: NodeId| after.iter().flat_map(changes).any(|one| one.dir == folder);
        let renamed =
            |folder: NodeId| after.iter().any(|op| op.kind() == "rename" && self.carries(op, folder));
        let mut begun = self.recording.ops[self.from..self.k].iter().filter_map(created);
        begun.any(|folder| filled(folder) && !renamed(folder))
    }

    /// A name that was there when the save began is gone, and comes again, or nothing has come instead yet.
    fn deleted_first(&self) -> bool {
        let gone =
            self.recording.ops[self.from..self.k].iter().flat_map(changes).filter(|one| one.node.is_none());
        let set_before = |dir: NodeId, name: &OsString| {
            self.recording.ops[self.from..self.k]
                .iter()
                .flat_map(changes)
                .any(|one| one.dir == dir && one.name == *name && one.node.is_some())
        };
        gone.into_iter().any(|one| !set_before(one.dir, &one.name))
    }

    fn renamed_one_by_one(&self) -> bool {
        let renamed =
            |range: std::ops::Range<usize>| self.recording.ops[range].iter().any(|op| op.kind() == "rename");
        renamed(self.from..self.k) && renamed(self.k..self.to)
    }

    /// A file changed before the moment speaks of a name that comes only after it.
    fn names_what_is_not_there(&self) -> Option<Cause> {
        let coming: Vec<&OsString> = self.recording.ops[self.k..self.to]
            .iter()
            .flat_map(changes)
            .filter(|one| one.node.is_some())
            .map(|one| &one.name)
            .collect();
        let tree = self.candidate.tree(self.recording);
        let mut reader = Reader::new(self.recording).ok()?;
        let changed = tree.leaves.iter().filter(|(_, leaf)| match leaf {
            Leaf::File { touched, .. } => *touched as usize > self.from,
            _ => false,
        });
        for ((_, path), leaf) in changed {
            let Leaf::File { content, .. } = leaf else { continue };
            let head = content.head(&mut reader, 4096).ok()?;
            let names = |name: &&&OsString| {
                let bytes = name.as_bytes();
                bytes.len() > 1
                    && path.file_name() != Some(name)
                    && head.windows(bytes.len()).any(|at| at == bytes)
            };
            if let Some(name) = coming.iter().find(names) {
                let bare = head.trim_ascii().len() <= name.len() + 16;
                return Some(if bare { Cause::MarkerFirst } else { Cause::ManifestFirst });
            }
        }
        None
    }
}

fn changes(op: &Op) -> &[super::recording::NameChange] {
    match &op.what {
        What::Names(changes) => changes,
        _ => &[],
    }
}

/// The operations that lead to a state, those that were lost marked: from the last promise that holds in it.
pub(super) fn story(recording: &Recording, candidate: &Candidate) -> Vec<String> {
    let k = candidate.k as usize;
    let first_lost = candidate.lost.first().map_or(k, |unit| unit.op as usize);
    let from = recording.ops[..first_lost.min(k)]
        .iter()
        .rposition(|op| matches!(op.what, What::Said { saved: Some(_), .. }))
        .unwrap_or(0);
    let mark = |op: usize| {
        if let Some((_, tear)) = candidate.torn.filter(|(torn, _)| *torn as usize == op) {
            return format!("  torn: {}", tear_words(tear));
        }
        let lost: Vec<u8> =
            candidate.lost.iter().filter(|unit| unit.op as usize == op).map(|unit| unit.part).collect();
        match (&lost[..], &recording.ops[op].what) {
            ([], _) => String::new(),
            ([part, ..], What::Write { .. }) if *part == BYTES => "  zeroes".into(),
            (parts, What::Names(changes)) if parts.len() < changes.len() => "  half lost".into(),
            _ => "  lost".into(),
        }
    };
    let mut lines: Vec<String> =
        (from..k).map(|op| format!("{op:>4}  {}{}", recording.ops[op].text, mark(op))).collect();
    const MOST: usize = 40;
    if lines.len() > MOST {
        let left_out = lines.len() - MOST;
        lines.splice(MOST / 2..MOST / 2 + left_out, [format!("      .. {left_out} operations ..")]);
    }
    lines
}

impl State {
    /// Which crash, where, and what it took: one line.
    pub fn words(&self, recording: &Recording) -> String {
        let Some((crash, way)) = self.hardest() else { return "nothing".into() };
        let Candidate { k, lost, torn } = &way.candidate;
        let after = match k.checked_sub(1) {
            Some(at) => format!("after {}", recording.ops[at as usize].text),
            None => "before anything was written".into(),
        };
        let torn =
            torn.map(|(op, tear)| format!("of {} {}", recording.ops[op as usize].text, tear_words(tear)));
        let lost = lost.first().map(|unit| {
            let zeroes =
                matches!(recording.ops[unit.op as usize].what, What::Write { .. }) && unit.part == BYTES;
            let zeroes = if zeroes { "the bytes of " } else { "" };
            let first = format!("{zeroes}{}", recording.ops[unit.op as usize].text);
            if lost.len() == 1 {
                format!("{first} lost")
            } else {
                format!("{first} and {} more lost", lost.len() - 1)
            }
        });
        let took: Vec<String> = [lost, torn].into_iter().flatten().collect();
        let took = if took.is_empty() { String::new() } else { format!(": {}", took.join("; ")) };
        match crash {
            Crash::Process => format!("killed {after}{took}"),
            Crash::Power(_) => {
                let models: Vec<&str> = self
                    .ways
                    .keys()
                    .filter_map(|crash| match crash {
                        Crash::Power(model) => Some(model.name()),
                        Crash::Process => None,
                    })
                    .collect();
                format!("power loss ({}) {after}{took}", models.join(", "))
            }
        }
    }

    /// What shows that it is another state than the one before the crash.
    pub fn evidence(&self, recording: &Recording) -> String {
        let candidate = self.candidate();
        let files = candidate.tree(recording).leaves.len();
        let lines = difference(recording, candidate);
        let more = lines.len().saturating_sub(5);
        let more = if more > 0 { format!("; {more} more") } else { String::new() };
        let lines: Vec<String> = lines.into_iter().take(5).collect();
        format!("{files} files and folders laid out; set apart by: {}{more}", lines.join("; "))
    }

    /// The one that a kill leaves.
    pub fn of_kill(recording: &Recording, candidate: Candidate) -> State {
        let digest = candidate.tree(recording).digest();
        let promised = recording.promised(candidate.k as usize);
        State { ways: [(Crash::Process, Way { candidate, promised })].into(), digest }
    }
}

fn tear_words(tear: Tear) -> String {
    match tear {
        Tear::Prefix(kept) => format!("only its first {kept} bytes"),
        Tear::ZeroTail(kept) => format!("whole in length, zeroes after {kept} bytes"),
        Tear::GarbageTail(kept) => format!("whole in length, garbage after {kept} bytes"),
        Tear::Hole(missing) => format!("the first {missing} bytes are zeroes"),
    }
}

/// What sets a tree apart from the one that there would have been without the fault.
pub(super) fn difference(recording: &Recording, candidate: &Candidate) -> Vec<String> {
    let there = candidate.tree(recording);
    let k = candidate.k as usize;
    let reference = if candidate.lost.is_empty() && candidate.torn.is_none() {
        // A process crash: what the last promise left.
        let from = View::new(recording, candidate).from;
        Candidate::whole(from).tree(recording)
    } else {
        Candidate::whole(k).tree(recording)
    };
    compare(&there, &reference)
}

fn compare(there: &Tree, reference: &Tree) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = there.leaves.keys().chain(reference.leaves.keys()).collect();
    for key in paths {
        match (there.leaves.get(key), reference.leaves.get(key)) {
            (Some(_), None) => lines.push(format!("+ {}", shown(&key.1))),
            (None, Some(_)) => lines.push(format!("- {}", shown(&key.1))),
            (Some(Leaf::File { content, .. }), Some(Leaf::File { content: was, .. })) if content != was => {
                lines.push(format!("~ {}: {} bytes instead of {}", shown(&key.1), content.len(), was.len()));
            }
            _ => {}
        }
    }
    lines.truncate(30);
    lines
}
