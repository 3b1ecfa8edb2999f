//! Makes the hints for people of what commands left in a sandbox and met there. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use scenarios::SandboxHint;

use super::protocol::SandboxTraces;

/// Directories whose contents interpreters write by themselves. Nobody has to watch them.
const CACHE_DIRS: [&str; 1] = ["__pycache__"];
/// Directories of the kernel: what is written there is no file.
const KERNEL_DIRS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The hints of what a sandbox has seen. `written` has paths that were opened for writing.
pub(super) fn hints_of(traces: &SandboxTraces, written: &[PathBuf]) -> Vec<SandboxHint> {
    let failures = traces.network_failures;
    let no_route = SandboxHint::NoRoute { count: failures.no_route };
    let refused = SandboxHint::NothingListens { count: failures.refused };
    let network = [(failures.no_route, no_route), (failures.refused, refused)];
    let mut hints: Vec<SandboxHint> =
        network.into_iter().filter(|(count, _)| *count > 0).map(|(_, hint)| hint).collect();
    let is_kernel = |path: &Path| KERNEL_DIRS.iter().any(|dir| path.starts_with(dir));
    // The root directory itself is the sandbox's own, unlike some of the directories in it.
    let is_in_root = |path: &Path| path.parent() == Some(Path::new("/"));
    let is_private =
        |path: &Path| is_in_root(path) || traces.private_dirs.iter().any(|dir| path.starts_with(dir));
    for path in written.iter().filter(|path| !is_kernel(path) && !is_private(path)) {
        hints.push(SandboxHint::RefusedWrite { path: text_of(path) });
    }
    let changed = traces.changes.iter().map(|change| change.path.as_path());
    let opened = written.iter().map(PathBuf::as_path).filter(|path| is_private(path));
    hints.extend(written_outside(changed.chain(opened)));
    hints
}

/// One hint for each directory in which something was written: for the file, if it is the only one.
fn written_outside<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<SandboxHint> {
    let mut by_dir: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for path in paths.filter(|path| !is_cache(path)) {
        let files = by_dir.entry(path.parent().unwrap_or(path)).or_default();
        if !files.contains(&path) {
            files.push(path);
        }
    }
    let hint = |(dir, files): (&Path, Vec<&Path>)| match files[..] {
        [file] => SandboxHint::WroteOutside { path: text_of(file), count: 1 },
        _ => SandboxHint::WroteOutside { path: text_of(dir), count: files.len() as u64 },
    };
    by_dir.into_iter().map(hint).collect()
}

fn is_cache(path: &Path) -> bool {
    path.components().any(|part| CACHE_DIRS.iter().any(|cache| part.as_os_str() == *cache))
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{NetworkFailures, OutsideChange};
    use super::*;

    fn traces(paths: &[&str]) -> SandboxTraces {
        let changes = paths.iter().map(|path| OutsideChange { path: path.into(), removed: false }).collect();
        SandboxTraces {
            changes,
            private_dirs: vec!["/home".into(), "/tmp".into()],
            network_failures: NetworkFailures::default(),
        }
    }

    #[test]
    fn files_of_one_directory_are_one_hint_and_caches_are_none() {
        let traces = traces(&["/home/p/a", "/home/p/b", "/tmp/x", "/home/p/__pycache__/m.pyc"]);
        assert_eq!(
            hints_of(&traces, &["/home/p/a".into(), "/dev/null".into()]),
            [
                SandboxHint::WroteOutside { path: "/home/p".into(), count: 2 },
                SandboxHint::WroteOutside { path: "/tmp/x".into(), count: 1 },
            ]
        );
    }

    #[test]
    fn a_write_to_a_directory_that_is_not_private_was_refused() {
        let hints = hints_of(&traces(&[]), &["/mnt/data/log".into()]);
        assert_eq!(hints, [SandboxHint::RefusedWrite { path: "/mnt/data/log".into() }]);
    }
}
