//! Decides how the recorded target sees each watched directory, and prepares that: a private copy of a small
//! one, an overlay over a large one. Knows no operations.

use std::fs::Permissions;
use std::io::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::copy_tree::{CopyReport, copy_directory_alone, copy_tree_reporting};
use super::empty_directory::empty_directory;
use super::initial_tree::WatchedRoot;
use super::record_spec::RecordSpec;
use super::tree_size::{OverlayObstacle, TreeSize};
use crate::explore::error::ExploreError;
use crate::file_error::{FileError, chain, file_error};
use crate::sandbox::{
    BindMount, HostAccess, OverlayMount, Sandbox, SandboxError, SandboxSpec, current_dir, fail_if_interrupted,
};

/// Watched directories with more bytes than this are shown as overlays, not copied.
pub const MAX_COPIED_BYTES: u64 = 1 << 30;

/// What happens with a watched directory that has more than [`MAX_COPIED_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LargeTreeProgress {
    /// The target sees it as an overlay.
    Overlaid {
        /// The directory.
        dir: PathBuf,
        /// The length of all its files together.
        len_bytes: u64,
    },
    /// It will be copied.
    Copying {
        /// The directory.
        dir: PathBuf,
        /// The length of all its files together.
        len_bytes: u64,
        /// Why it is no overlay.
        obstacle: OverlayObstacle,
    },
    /// So much of it has been copied.
    Copied {
        /// How many bytes so far.
        done_bytes: u64,
        /// How many there are.
        len_bytes: u64,
    },
}

/// Receives the progress.
pub(in crate::explore) type ReportLargeTree<'a> = dyn Fn(LargeTreeProgress) + 'a;

/// How the target sees one watched directory.
enum WatchedView {
    /// As a copy.
    Copy(BindMount),
    /// As an overlay.
    Overlay(OverlayMount),
}

/// How the target sees the watched directories, in their order.
pub(super) struct WatchedViews {
    views: Vec<WatchedView>,
    /// What the copies lack.
    pub(super) copies: CopyReport,
}

impl WatchedViews {
    /// Decides about each watched directory, and copies those that are no overlays. `dir`: the directory of
    /// the sandbox.
    ///
    /// # Errors
    /// A copy failed, or no sandbox can be built.
    pub(super) fn prepare(
        spec: &RecordSpec,
        dir: &Path,
        report: &ReportLargeTree<'_>,
    ) -> Result<WatchedViews, ExploreError> {
        let mut prepared = WatchedViews { views: Vec::new(), copies: CopyReport::default() };
        for (number, mount_point) in spec.watched_dirs.iter().enumerate() {
            let (layers, own_dir) = (spec.original_layers(number), dir.join("root").join(number.to_string()));
            let overlay = OverlayMount {
                lowers: layers.clone(),
                upper: own_dir.clone(),
                mount_point: mount_point.clone(),
            };
            let size = match choose(spec, &overlay)? {
                ViewChoice::Copy(size) => size,
                ViewChoice::Overlay { len_bytes } => {
                    if let Some(len_bytes) = len_bytes {
                        report(LargeTreeProgress::Overlaid { dir: mount_point.clone(), len_bytes });
                    }
                    // An overlay shows the attributes of its upper layer.
                    layers.first().map_or(Ok(()), |top| copy_directory_alone(top, &overlay.upper))?;
                    prepared.views.push(WatchedView::Overlay(overlay));
                    continue;
                }
            };
            let original = layers.first().filter(|original| original.exists());
            if let Some(original) = original {
                prepared.copies.add(copy_with_progress(mount_point, original, &own_dir, size, report)?);
            } else {
                std::fs::create_dir_all(&own_dir).map_err(file_error::<ExploreError>("create", &own_dir))?;
            }
            let bind = BindMount { source: own_dir, mount_point: mount_point.clone() };
            prepared.views.push(WatchedView::Copy(bind));
        }
        Ok(prepared)
    }

    /// The directories that the sandbox mounts.
    pub(super) fn binds(&self) -> Vec<BindMount> {
        let bind = |view: &WatchedView| match view {
            WatchedView::Copy(bind) => Some(bind.clone()),
            WatchedView::Overlay(_) => None,
        };
        self.views.iter().filter_map(bind).collect()
    }

    /// The overlays that the sandbox mounts.
    pub(super) fn overlays(&self) -> Vec<OverlayMount> {
        let overlay = |view: &WatchedView| match view {
            WatchedView::Copy(_) => None,
            WatchedView::Overlay(overlay) => Some(overlay.clone()),
        };
        self.views.iter().filter_map(overlay).collect()
    }

    /// The lower layers of each directory. Empty for a copy.
    pub(super) fn lower_layers(&self) -> Vec<Vec<PathBuf>> {
        let layers = |view: &WatchedView| match view {
            WatchedView::Copy(_) => Vec::new(),
            WatchedView::Overlay(overlay) => overlay.lowers.clone(),
        };
        self.views.iter().map(layers).collect()
    }

    /// The directories as the target and the harness see them.
    pub(super) fn roots(&self, sandbox: &Sandbox) -> Vec<WatchedRoot> {
        let root = |view: &WatchedView| match view {
            WatchedView::Copy(BindMount { source, mount_point }) => {
                WatchedRoot { seen_by_target: mount_point.clone(), seen_by_harness: source.clone() }
            }
            WatchedView::Overlay(OverlayMount { mount_point, .. }) => WatchedRoot {
                seen_by_target: mount_point.clone(),
                seen_by_harness: sandbox.host_path(mount_point),
            },
        };
        self.views.iter().map(root).collect()
    }

    /// Empties the copies and the upper layers, so that the sandbox can remove them also where this user has no
    /// permission.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(super) fn empty(&self) -> Result<(), FileError> {
        for view in &self.views {
            let (WatchedView::Copy(BindMount { source: own_dir, .. })
            | WatchedView::Overlay(OverlayMount { upper: own_dir, .. })) = view;
            empty(own_dir).map_err(file_error::<FileError>("empty", own_dir))?;
        }
        Ok(())
    }
}

/// Which view of a directory is prepared.
enum ViewChoice {
    /// `len_bytes`: its size, where that decided.
    Overlay { len_bytes: Option<u64> },
    /// With an obstacle if only that is why it is no overlay.
    Copy(TreeSize),
}

/// Decides about one watched directory. `overlay`: what it would be as an overlay.
fn choose(spec: &RecordSpec, overlay: &OverlayMount) -> Result<ViewChoice, ExploreError> {
    let [original] = &overlay.lowers[..] else {
        // After a first crash, with the layers of the first recording below.
        return Ok(ViewChoice::Overlay { len_bytes: None });
    };
    // What a first crash left of a copied directory is no larger than the copy.
    if spec.first_crash.is_some() || !original.exists() {
        return Ok(ViewChoice::Copy(TreeSize::default()));
    }
    let size = TreeSize::of(original);
    fail_if_interrupted()?;
    if size.len_bytes <= spec.max_copied_bytes {
        return Ok(ViewChoice::Copy(TreeSize { obstacle: None, ..size }));
    }
    let TreeSize { len_bytes, obstacle } = size;
    let obstacle = match obstacle {
        None => probe(spec, overlay)?,
        found => found,
    };
    Ok(match obstacle {
        None => ViewChoice::Overlay { len_bytes: Some(len_bytes) },
        obstacle => ViewChoice::Copy(TreeSize { len_bytes, obstacle }),
    })
}

/// Tries to mount an overlay. Returns why it cannot be mounted.
fn probe(spec: &RecordSpec, overlay: &OverlayMount) -> Result<Option<OverlayObstacle>, ExploreError> {
    let dir = spec.work_dir.join("overlay-probe");
    std::fs::create_dir_all(&dir).map_err(file_error::<ExploreError>("create", &dir))?;
    let sandbox_spec = || -> Result<SandboxSpec, SandboxError> {
        Ok(SandboxSpec {
            dir: dir.clone(),
            mounts: Vec::new(),
            binds: Vec::new(),
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: false,
            host_access: HostAccess::default(),
            cwd: current_dir()?,
        })
    };
    let overlay = OverlayMount { upper: dir.join("root").join("upper"), ..overlay.clone() };
    match Sandbox::build_with_overlays(sandbox_spec()?, vec![overlay]) {
        Ok(sandbox) => {
            sandbox.close()?;
            Ok(None)
        }
        Err(error) => {
            // If there is no sandbox without the overlay either, that is the error.
            std::fs::create_dir_all(&dir).map_err(file_error::<ExploreError>("create", &dir))?;
            Sandbox::build(sandbox_spec()?)?.close()?;
            Ok(Some(OverlayObstacle::Refused(chain(&error))))
        }
    }
}

/// Copies a directory. Reports the progress if there is a reason why it is no overlay.
fn copy_with_progress(
    shown: &Path,
    original: &Path,
    copy: &Path,
    size: TreeSize,
    report: &ReportLargeTree<'_>,
) -> Result<CopyReport, FileError> {
    let TreeSize { len_bytes, obstacle } = size;
    let Some(obstacle) = obstacle else { return copy_tree_reporting(original, copy, &mut |_| ()) };
    report(LargeTreeProgress::Copying { dir: shown.into(), len_bytes, obstacle });
    let mut done_bytes = 0;
    copy_tree_reporting(original, copy, &mut |more_bytes| {
        done_bytes += more_bytes;
        report(LargeTreeProgress::Copied { done_bytes, len_bytes });
    })
}

/// Empties a directory.
fn empty(dir: &Path) -> Result<(), Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // The target may have taken this user's own permissions.
    let opened = nix::fcntl::open(dir, flags, Mode::empty()).or_else(|_| {
        let _ = std::fs::set_permissions(dir, Permissions::from_mode(0o700));
        nix::fcntl::open(dir, flags, Mode::empty())
    });
    let dir = opened?;
    empty_directory(dir, &mut |dir, name, _| Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?))
}
