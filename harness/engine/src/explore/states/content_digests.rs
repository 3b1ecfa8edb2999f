//! What crash states consist of, as digests: equal for states of different recordings with equal files. Reads
//! recorded bytes, but none of files that a run left as they were; those count by their place and length.

use std::collections::HashMap;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;

use super::crash_candidate::CrashCandidate;
use super::file_tree::{FileTree, TreeEntry};
use super::state_name::StateContents;
use crate::explore::record::{
    AttributesId, ByteSource, ContentReader, FileContent, FileNodeKind, NodeId, OpEffect, Recording,
};

/// The first bytes of [`StateContents::files`] are about names and lengths.
const SHAPE_BYTES: usize = 2;
/// Those up to this one are about the bytes of the files, the last one about the acknowledged step.
const FILE_BYTES: usize = 7;

/// Computes digests of states of one recording.
pub(in crate::explore) struct ContentDigests<'a> {
    recording: &'a Recording,
    reader: ContentReader<'a>,
    /// By the digest of the content's structure.
    by_structure: HashMap<[u8; 16], blake3::Hash>,
    /// Of all operations.
    of_recording: [u8; 4],
}

/// Fields of different lengths, so that no two sequences of fields have the same bytes.
#[derive(Default)]
struct Fields(blake3::Hasher);

impl Fields {
    fn add(&mut self, field: &[u8]) {
        self.0.update(&(field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    fn first_bytes<const LEN: usize>(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&self.0.finalize().as_bytes()[..LEN]);
        bytes
    }
}

impl<'a> ContentDigests<'a> {
    /// Reads all written bytes once.
    ///
    /// # Errors
    /// A recorded byte cannot be read.
    pub(in crate::explore) fn new(recording: &'a Recording) -> Result<ContentDigests<'a>, Error> {
        let mut reader = ContentReader::new(recording)?;
        let of_recording = digest_of_recording(recording, &mut reader)?;
        Ok(ContentDigests { recording, reader, by_structure: HashMap::new(), of_recording })
    }

    /// What a state consists of.
    ///
    /// # Errors
    /// A recorded byte cannot be read.
    pub(in crate::explore) fn of(&mut self, candidate: &CrashCandidate) -> Result<StateContents, Error> {
        let tree = candidate.tree(self.recording);
        let shape = shape_of(self.recording, &tree);
        self.with_bytes(shape, &tree, candidate)
    }

    /// Whether a state has these digests: the same files, and the same acknowledged step, without which it is another
    /// promise that is asked about. Reads bytes only if the names and lengths are the same.
    ///
    /// # Errors
    /// A recorded byte cannot be read.
    pub(super) fn is_same(&mut self, candidate: &CrashCandidate, files: [u8; 8]) -> Result<bool, Error> {
        let tree = candidate.tree(self.recording);
        let shape = shape_of(self.recording, &tree);
        if shape.first_bytes::<SHAPE_BYTES>()[..] != files[..SHAPE_BYTES] {
            return Ok(false);
        }
        Ok(self.with_bytes(shape, &tree, candidate)?.files == files)
    }

    pub(super) fn of_recording(&self) -> [u8; 4] {
        self.of_recording
    }

    fn with_bytes(
        &mut self,
        shape: Fields,
        tree: &FileTree,
        candidate: &CrashCandidate,
    ) -> Result<StateContents, Error> {
        let mut files = [0; 8];
        files[..SHAPE_BYTES].copy_from_slice(&shape.first_bytes::<SHAPE_BYTES>());
        let mut bytes = shape;
        for entry in tree.entries.values() {
            if let TreeEntry::File { content, .. } = entry {
                bytes.add(self.digest_of_content(content)?.as_bytes());
            }
        }
        files[SHAPE_BYTES..FILE_BYTES].copy_from_slice(&bytes.first_bytes::<{ FILE_BYTES - SHAPE_BYTES }>());
        let mut step = Fields::default();
        let acknowledged = self.recording.acknowledged(candidate.op_count as usize);
        step.add_number(acknowledged.map_or(0, |step| step.wrapping_add(1)));
        files[FILE_BYTES..].copy_from_slice(&step.first_bytes::<{ 8 - FILE_BYTES }>());
        Ok(StateContents { files, recording: self.of_recording })
    }

    fn digest_of_content(&mut self, content: &FileContent) -> Result<blake3::Hash, Error> {
        if let Some(node) = unchanged_file(content) {
            return Ok(blake3::hash(&node.to_le_bytes()));
        }
        let structure = content.digest();
        if let Some(known) = self.by_structure.get(&structure) {
            return Ok(*known);
        }
        let mut hasher = blake3::Hasher::new();
        content.write_to(&mut self.reader, &mut hasher)?;
        let digest = hasher.finalize();
        self.by_structure.insert(structure, digest);
        Ok(digest)
    }
}

/// The file that this is the whole content of, as it was before the run.
fn unchanged_file(content: &FileContent) -> Option<NodeId> {
    match content.pieces() {
        [piece] => match piece.source {
            ByteSource::Initial(node, 0) => Some(node),
            _ => None,
        },
        _ => None,
    }
}

/// The names, kinds, lengths and permissions of the files, and which names are names of one file.
fn shape_of(recording: &Recording, tree: &FileTree) -> Fields {
    let mut shape = Fields::default();
    let mut first_names: HashMap<NodeId, u64> = HashMap::new();
    tree.roots.iter().for_each(|root| add_attributes(&mut shape, recording, root.set));
    for (number, (key, entry)) in (0_u64..).zip(&tree.entries) {
        let (root, path) = key;
        shape.add_number(u64::from(*root));
        shape.add(path.as_os_str().as_bytes());
        let node = match entry {
            TreeEntry::Directory { .. } => {
                shape.add(b"directory");
                None
            }
            TreeEntry::File { node, content, .. } => {
                shape.add(b"file");
                shape.add_number(content.len());
                Some(*node)
            }
            TreeEntry::Symlink { node, target, .. } => {
                shape.add(b"link");
                shape.add(target.as_os_str().as_bytes());
                Some(*node)
            }
            TreeEntry::Pipe { node, .. } => {
                shape.add(b"pipe");
                Some(*node)
            }
        };
        let is_leftover = tree.leftover_names.contains(key);
        let node = node.filter(|_| !is_leftover);
        shape.add_number(node.map_or(number, |node| *first_names.entry(node).or_insert(number)));
        add_attributes(&mut shape, recording, entry.attributes().set);
    }
    shape
}

/// Permissions and extended attributes. Owners depend on who runs the exploration, and times on when.
fn add_attributes(fields: &mut Fields, recording: &Recording, id: AttributesId) {
    let attributes = recording.attributes(id);
    fields.add_number(u64::from(attributes.mode));
    fields.add_number(attributes.xattrs.len() as u64);
    for (name, value) in &attributes.xattrs {
        fields.add(name.as_bytes());
        fields.add(value);
    }
}

/// A digest of what was there before the run, and of all operations. Lines that acknowledge nothing do not count:
/// many have a time in them.
fn digest_of_recording(recording: &Recording, reader: &mut ContentReader<'_>) -> Result<[u8; 4], Error> {
    let mut fields = Fields::default();
    for node in &recording.nodes {
        match &node.kind {
            FileNodeKind::Directory => fields.add(b"directory"),
            FileNodeKind::File { initial_len_bytes } => fields.add_number(*initial_len_bytes),
            FileNodeKind::Symlink { target } => fields.add(target.as_os_str().as_bytes()),
            FileNodeKind::Pipe => fields.add(b"pipe"),
        }
        add_attributes(&mut fields, recording, node.attributes);
    }
    for (dir, names) in &recording.initial_names {
        fields.add_number(u64::from(*dir));
        for (name, node) in names {
            fields.add(name.as_bytes());
            fields.add_number(u64::from(*node));
        }
    }
    for op in &recording.ops {
        add_effect(&mut fields, recording, reader, &op.effect)?;
    }
    Ok(fields.first_bytes())
}

fn add_effect(
    fields: &mut Fields,
    recording: &Recording,
    reader: &mut ContentReader<'_>,
    effect: &OpEffect,
) -> Result<(), Error> {
    match effect {
        OpEffect::NameChanges(changes) => {
            fields.add(b"names");
            for change in changes {
                fields.add_number(u64::from(change.dir));
                fields.add(change.name.as_bytes());
                fields.add_number(change.node.map_or(u64::MAX, u64::from));
            }
        }
        OpEffect::Write { node, offset, len_bytes, payload_offset } => {
            fields.add(b"write");
            [u64::from(*node), *offset].into_iter().for_each(|number| fields.add_number(number));
            let mut payload = FileContent::default();
            payload.put(0, *len_bytes, ByteSource::PayloadLog(*payload_offset));
            fields.add_number(*len_bytes);
            payload.write_to(reader, &mut fields.0)?;
        }
        OpEffect::Resize { node, size_bytes } => {
            fields.add(b"resize");
            [u64::from(*node), *size_bytes].into_iter().for_each(|number| fields.add_number(number));
        }
        OpEffect::Zero { node, offset, len_bytes } => {
            fields.add(b"zero");
            let numbers = [u64::from(*node), *offset, *len_bytes];
            numbers.into_iter().for_each(|number| fields.add_number(number));
        }
        OpEffect::Sync { node, data_only } => {
            fields.add(if *data_only { b"fdatasync" } else { b"fsync" });
            fields.add_number(u64::from(*node));
        }
        OpEffect::SyncAll => fields.add(b"sync"),
        OpEffect::SetAttributes { node, attributes, .. } => {
            fields.add(b"attributes");
            fields.add_number(u64::from(*node));
            add_attributes(fields, recording, *attributes);
        }
        OpEffect::Output { saved_step: Some(step), .. } => {
            fields.add(b"acknowledged");
            fields.add_number(*step);
        }
        OpEffect::Output { saved_step: None, .. } => {}
    }
    Ok(())
}
