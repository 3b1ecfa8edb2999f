//! What of the host the target may touch: `--writable` and `--network`, added to the same keys of the target
//! file, and checked. Changes nothing on the host.

use std::path::{Path, PathBuf};

use scenarios::{TargetFile, TargetNetwork};

use crate::args::{HostAccessArgs, NetworkArg};
use crate::shell_quote::shell_quote;
use engine::sandbox::{HostAccess, NetworkAccess};

/// Directories of which the sandbox has its own.
const OWN_DIRS: [&str; 2] = ["/proc", "/sys"];

/// Why a directory cannot be made writable. `named_by`: the option or the key that names it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostAccessError {
    /// It does not exist, or cannot be reached.
    #[error("{named_by} `{path}`: create the directory, or correct its path", path = .path.display())]
    Unreachable { named_by: String, path: PathBuf, source: std::io::Error },
    /// It is a file.
    #[error("{named_by} `{path}`: not a directory; give the directory that contains it", path = .path.display())]
    NotDirectory { named_by: String, path: PathBuf },
    /// It is `/`.
    #[error("{named_by} `/`: give only the directory in which the trainer must write")]
    Root { named_by: String },
    /// The sandbox has its own.
    #[error("{named_by} `{path}`: the sandbox has its own `{own}`; remove it", path = .path.display())]
    OwnOfSandbox { named_by: String, path: PathBuf, own: &'static str },
    /// It contains a directory that the harness replaces by a copy, or lies in one.
    #[error(
        "--writable `{path}`: {relation} `{private_dir}`, where the trainer works on a copy; give a directory \
         apart from it",
        path = .path.display(),
        private_dir = .private_dir.display()
    )]
    NotApart { path: PathBuf, relation: &'static str, private_dir: PathBuf },
}

/// A target file, and the directory that its relative paths start from.
#[derive(Clone, Copy)]
pub(crate) struct LocatedTarget<'a> {
    pub(crate) file: &'a TargetFile,
    pub(crate) dir: &'a Path,
}

/// The access that the options and the target file give. Directories add up; `--network` comes before the
/// file's `network`.
///
/// # Errors
/// If a directory does not exist, or may not be made writable.
pub(crate) fn host_access(
    args: &HostAccessArgs,
    target: Option<LocatedTarget<'_>>,
) -> Result<HostAccess, HostAccessError> {
    let mut writable = Vec::new();
    for path in &args.writable {
        writable.push(checked_dir("--writable", path)?);
    }
    if let Some(LocatedTarget { file, dir }) = target {
        let named_by = format!("`writable` of target `{}`:", file.id());
        for path in file.writable() {
            writable.push(checked_dir(&named_by, &dir.join(path))?);
        }
    }
    writable.sort();
    // A directory inside another one is writable with it.
    writable.dedup_by(|later, earlier| later.starts_with(&*earlier));
    let of_file = target.and_then(|target| target.file.network()).map(|network| match network {
        TargetNetwork::Private => NetworkAccess::Private,
        TargetNetwork::Host => NetworkAccess::Host,
    });
    let of_args = args.network.map(|network| match network {
        NetworkArg::Private => NetworkAccess::Private,
        NetworkArg::Host => NetworkAccess::Host,
    });
    Ok(HostAccess { writable, hidden: Vec::new(), network: of_args.or(of_file).unwrap_or_default() })
}

/// The directory without links in its path.
fn checked_dir(named_by: &str, path: &Path) -> Result<PathBuf, HostAccessError> {
    let (named_by, path) = (named_by.to_owned(), path.to_path_buf());
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(source) => return Err(HostAccessError::Unreachable { named_by, path, source }),
    };
    if !real.is_dir() {
        return Err(HostAccessError::NotDirectory { named_by, path });
    }
    if real == Path::new("/") {
        return Err(HostAccessError::Root { named_by });
    }
    match OWN_DIRS.into_iter().find(|own| real.starts_with(own)) {
        Some(own) => Err(HostAccessError::OwnOfSandbox { named_by, path, own }),
        None => Ok(real),
    }
}

/// Checks that the target sees copies only where it may not write for real. `private_dirs`: absolute, without
/// symbolic links.
///
/// # Errors
/// If a writable directory contains a private one, or lies in one.
pub(crate) fn check_apart(access: &HostAccess, private_dirs: &[PathBuf]) -> Result<(), HostAccessError> {
    for path in &access.writable {
        for private_dir in private_dirs {
            let relation = match (private_dir.starts_with(path), path.starts_with(private_dir)) {
                (true, true) => "is",
                (true, false) => "contains",
                (false, true) => "lies in",
                (false, false) => continue,
            };
            let (path, private_dir) = (path.clone(), private_dir.clone());
            return Err(HostAccessError::NotApart { path, relation, private_dir });
        }
    }
    Ok(())
}

/// The options, as they are written on a command line. Each begins with a space.
pub(crate) fn repeat_options(args: &HostAccessArgs) -> String {
    let writable = args.writable.iter().map(|dir| {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
        format!(" --writable {}", shell_quote(dir.as_os_str()))
    });
    let network = args.network.map(|network| match network {
        NetworkArg::Private => " --network private".to_owned(),
        NetworkArg::Host => " --network host".to_owned(),
    });
    writable.chain(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    const TARGET: &str = "version: 1\nid: t\ntitle: t\nprogram: sh\nstart: [sh]\n\
        announces: {step: '(?<step>1)'}\n";

    fn args(writable: &[&Path], network: Option<NetworkArg>) -> HostAccessArgs {
        HostAccessArgs { writable: writable.iter().map(|dir| dir.to_path_buf()).collect(), network }
    }

    #[test]
    fn options_and_keys_add_up_and_the_option_decides_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        for name in ["cache", "cache/inner", "cache-2", "data"] {
            std::fs::create_dir(real.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("data", real.join("link")).unwrap();
        let text = format!("{TARGET}writable: [cache, cache/inner, link]\nnetwork: host\n");
        let file = TargetFile::parse(&text, "t.yaml").unwrap();
        let located = Some(LocatedTarget { file: &file, dir: &real });
        let beside = real.join("cache-2");
        let access = host_access(&args(&[&beside], None), located).unwrap();
        assert_eq!(access.writable, ["cache", "cache-2", "data"].map(|name| real.join(name)));
        assert_eq!(access.network, NetworkAccess::Host);
        let access = host_access(&args(&[], Some(NetworkArg::Private)), located).unwrap();
        assert_eq!(access.network, NetworkAccess::Private);
        assert_eq!(host_access(&args(&[], None), None).unwrap(), HostAccess::default());
    }

    #[test]
    fn what_cannot_be_opened_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let missing = dir.path().join("missing");
        let refused = |path: &Path| host_access(&args(&[path], None), None).unwrap_err();
        let error = refused(&missing);
        assert!(error.source().is_some_and(|source| source.to_string().contains("No such file")), "{error}");
        for (path, reason) in [
            (file.as_path(), "not a directory"),
            (Path::new("/"), "--writable `/`"),
            (Path::new("/proc/self"), "its own `/proc`"),
            (Path::new("/sys/fs"), "its own `/sys`"),
        ] {
            let error = refused(path).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_writable_directory_is_apart_from_the_watched_ones() {
        let watched = [PathBuf::from("/home/me/runs")];
        for (path, relation) in [
            ("/home/me", Some("contains")),
            ("/home/me/runs", Some("is")),
            ("/home/me/runs/logs", Some("lies in")),
            ("/home/me/runs-2", None),
            ("/home/me/cache", None),
        ] {
            let access = HostAccess { writable: vec![path.into()], ..HostAccess::default() };
            match (check_apart(&access, &watched), relation) {
                (Ok(()), None) => {}
                (Err(error), Some(relation)) => {
                    let text = error.to_string();
                    assert!(text.contains(&format!("{relation} `/home/me/runs`")), "{text}");
                }
                (result, _) => panic!("{path}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_run_is_repeated_with_the_same_options() {
        let options = repeat_options(&args(&[Path::new("/my data")], Some(NetworkArg::Host)));
        assert_eq!(options, " --writable '/my data' --network host");
        assert_eq!(repeat_options(&args(&[], None)), "");
    }
}
