//! What of a crash state has to lie above the files that were there before the run, where the target sees both
//! through an overlay. Pure.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::crash_candidate::CrashCandidate;
use super::file_tree::{FileTree, TreeEntry};
use crate::explore::record::{NodeId, Recording};

/// Tells of each crash state of a recording what it has that the lower layers do not.
pub(in crate::explore) struct LayerPlan {
    /// The files before the run.
    initial: FileTree,
    /// By watched directory: whether the target sees it as an overlay.
    is_overlay: Vec<bool>,
}

/// The part of a file tree that differs from what lies below.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::explore) struct UpperLayer {
    /// The entries that differ, and the directories above them. Directories that are no overlays are whole.
    pub(in crate::explore) tree: FileTree,
    /// Names below that the layer has to hide. The directories with them are in the tree.
    pub(in crate::explore) hidden: Vec<(u32, PathBuf)>,
}

impl LayerPlan {
    /// The plan for a recording. `None`: no watched directory is an overlay.
    pub(in crate::explore) fn of(recording: &Recording) -> Option<LayerPlan> {
        let is_overlay: Vec<bool> =
            (0..recording.roots.len()).map(|root| !recording.lower_layers_of(root).is_empty()).collect();
        is_overlay.contains(&true).then(|| {
            let initial = CrashCandidate::whole(0).tree(recording);
            LayerPlan { initial, is_overlay }
        })
    }

    /// The upper layer with which the lower ones show this tree.
    ///
    /// A directory in it is merged with the one of the same path below, so that unchanged files in it need no
    /// entry. All names of a file are in the layer, or none.
    pub(in crate::explore) fn upper_layer(&self, tree: &FileTree) -> UpperLayer {
        let is_shown_below = |place: &(u32, PathBuf), entry| {
            self.is_overlay(place.0) && self.initial.entries.get(place) == Some(entry)
        };
        let made: HashSet<NodeId> = tree
            .entries
            .iter()
            .filter(|(place, entry)| !is_shown_below(place, entry) && !tree.leftover_names.contains(*place))
            .filter_map(|(_, entry)| node_of(entry))
            .collect();
        let mut upper = UpperLayer {
            tree: FileTree {
                roots: tree.roots.clone(),
                entries: BTreeMap::new(),
                leftover_names: tree.leftover_names.clone(),
            },
            hidden: Vec::new(),
        };
        for (place, entry) in &tree.entries {
            let is_made = node_of(entry).is_some_and(|node| made.contains(&node))
                && !tree.leftover_names.contains(place);
            if is_made || !is_shown_below(place, entry) {
                upper.tree.entries.insert(place.clone(), entry.clone());
                upper.add_directories_above(tree, place.0, &place.1);
            }
        }
        for place in self.initial.entries.keys().filter(|(root, _)| self.is_overlay(*root)) {
            // What is below a name that is hidden, or that is no directory any more, is hidden with it.
            if !tree.entries.contains_key(place) && is_directory(tree, place.0, place.1.parent()) {
                upper.hidden.push(place.clone());
                upper.add_directories_above(tree, place.0, &place.1);
            }
        }
        upper
    }

    fn is_overlay(&self, root: u32) -> bool {
        self.is_overlay.get(root as usize).copied().unwrap_or(false)
    }
}

impl UpperLayer {
    fn add_directories_above(&mut self, tree: &FileTree, root: u32, path: &Path) {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let place = (root, above.to_path_buf());
            let Some(entry) = tree.entries.get(&place) else { return };
            if self.tree.entries.insert(place, entry.clone()).is_some() {
                return;
            }
        }
    }
}

fn is_directory(tree: &FileTree, root: u32, path: Option<&Path>) -> bool {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return true };
    matches!(tree.entries.get(&(root, path.to_path_buf())), Some(TreeEntry::Directory { .. }))
}

fn node_of(entry: &TreeEntry) -> Option<NodeId> {
    match entry {
        TreeEntry::Directory { .. } => None,
        TreeEntry::File { node, .. } | TreeEntry::Symlink { node, .. } | TreeEntry::Pipe { node, .. } => {
            Some(*node)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::record::FileContent;
    use crate::explore::states::EntryAttributes;

    fn file(node: NodeId, len_bytes: u64) -> TreeEntry {
        let attributes = EntryAttributes { keeps_time: true, ..EntryAttributes::default() };
        TreeEntry::File { node, content: FileContent::initial(node, len_bytes), attributes }
    }

    fn directory(last_change: u32) -> TreeEntry {
        let attributes =
            EntryAttributes { keeps_time: last_change == 0, last_change, ..EntryAttributes::default() };
        TreeEntry::Directory { attributes }
    }

    fn tree(entries: &[(&str, TreeEntry)]) -> FileTree {
        let entries = entries.iter().map(|(path, entry)| ((0, PathBuf::from(path)), entry.clone()));
        FileTree { entries: entries.collect(), ..FileTree::default() }
    }

    fn paths(places: impl IntoIterator<Item = (u32, PathBuf)>) -> Vec<String> {
        places.into_iter().map(|(_, path)| path.to_string_lossy().into_owned()).collect()
    }

    fn plan(is_overlay: bool) -> LayerPlan {
        let initial = tree(&[
            ("a", directory(0)),
            ("a/deep", directory(0)),
            ("a/deep/old", file(3, 9)),
            ("a/model", file(4, 1 << 40)),
            ("b", directory(0)),
            ("b/1", file(6, 1)),
            ("c", file(7, 1)),
        ]);
        LayerPlan { initial, is_overlay: vec![is_overlay] }
    }

    #[test]
    fn an_unchanged_tree_needs_no_entry() {
        let plan = plan(true);
        assert_eq!(plan.upper_layer(&plan.initial), UpperLayer::default());
    }

    #[test]
    fn a_directory_that_is_no_overlay_is_whole() {
        let plan = plan(false);
        assert_eq!(plan.upper_layer(&plan.initial).tree, plan.initial);
    }

    #[test]
    fn changed_files_have_their_directories_and_removed_ones_are_hidden_at_the_top() {
        // `a/deep/old` grew, `b` became a file, and `c` was removed.
        let state = tree(&[
            ("a", directory(0)),
            ("a/deep", directory(0)),
            ("a/deep/old", file(3, 10)),
            ("a/model", file(4, 1 << 40)),
            ("b", file(9, 0)),
        ]);
        let upper = plan(true).upper_layer(&state);
        assert_eq!(paths(upper.tree.entries.into_keys()), ["a", "a/deep", "a/deep/old", "b"]);
        assert_eq!(paths(upper.hidden), ["c"]);
    }

    #[test]
    fn a_removed_directory_is_hidden_once_and_a_further_name_brings_all_names() {
        let state = tree(&[("a", directory(2)), ("a/best", file(4, 1 << 40)), ("a/model", file(4, 1 << 40))]);
        let upper = plan(true).upper_layer(&state);
        assert_eq!(paths(upper.tree.entries.into_keys()), ["a", "a/best", "a/model"]);
        assert_eq!(paths(upper.hidden), ["a/deep", "b", "c"]);
    }
}
