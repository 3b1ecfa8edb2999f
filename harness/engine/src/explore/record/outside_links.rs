//! Finds symbolic links in the watched directories that lead outside of them. Follows none.

use std::path::{Component, Path, PathBuf};

use scenarios::SandboxHint;

use super::initial_tree::WatchedRoot;

/// At most this many links are named.
const MAX_LINKS: usize = 50;

/// A hint for each symbolic link below the watched directories that leads outside of them.
pub(super) fn outside_links(roots: &[WatchedRoot]) -> Vec<SandboxHint> {
    let mut hints = Vec::new();
    for root in roots {
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let entries = std::fs::read_dir(root.seen_by_harness.join(&relative));
            for entry in entries.into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let inner = relative.join(entry.file_name());
                if kind.is_dir() {
                    pending.push(inner);
                } else if kind.is_symlink() && hints.len() < MAX_LINKS {
                    hints.extend(hint_of_link(roots, &root.seen_by_target.join(&inner), &entry.path()));
                }
            }
        }
    }
    hints.sort();
    hints
}

/// The hint of one link, if it leads outside.
fn hint_of_link(roots: &[WatchedRoot], link: &Path, real_link: &Path) -> Option<SandboxHint> {
    let text = std::fs::read_link(real_link).ok()?;
    let to = without_dots(&link.parent()?.join(text));
    let is_inside = roots.iter().any(|root| to.starts_with(&root.seen_by_target));
    let named = |path: &Path| path.to_string_lossy().into_owned();
    (!is_inside).then(|| SandboxHint::LinkLeadsOutside { link: named(link), to: named(&to) })
}

/// The path without `.` and `..`.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_that_lead_outside_are_named() -> Result<(), std::io::Error> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("inner"))?;
        let links = [("inner/up", "../checkpoint-1"), ("best", "/data/best"), ("inner/out", "../../logs")];
        for (name, text) in links {
            std::os::unix::fs::symlink(text, dir.path().join(name))?;
        }
        let root = WatchedRoot { seen_by_target: "/p/runs".into(), seen_by_harness: dir.path().into() };
        let leads = |link: &str, to: &str| SandboxHint::LinkLeadsOutside { link: link.into(), to: to.into() };
        let expected = [leads("/p/runs/best", "/data/best"), leads("/p/runs/inner/out", "/p/logs")];
        assert_eq!(outside_links(&[root]), expected);
        Ok(())
    }
}
