//! Finds and opens the libraries of a real driver. Unsafe: calls the dynamic loader. Must not know which
//! functions they have.

use std::ffi::{CStr, CString, NulError, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where drivers are installed. Searched after the directories of the loader's configuration.
const DRIVER_DIRS: [&str; 10] = [
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/run/opengl-driver/lib",
    "/usr/local/cuda/compat",
    "/usr/lib",
    "/lib",
];

/// Why a library cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// No C string can hold the path.
    #[error(transparent)]
    Path(#[from] NulError),
    /// What the loader says, which names the file.
    #[error("{0}")]
    Loader(String),
}

/// A library that was opened and is never closed.
#[derive(Clone, Copy)]
pub(crate) struct DynamicLibrary(*mut c_void);

// SAFETY: `dlsym` accepts a handle on any thread.
unsafe impl Send for DynamicLibrary {}
// SAFETY: `dlsym` may be called on several threads at once.
unsafe impl Sync for DynamicLibrary {}

impl DynamicLibrary {
    /// Opens a library and runs its initialisers.
    ///
    /// # Errors
    /// The path contains a NUL, or the loader cannot load the file.
    pub(crate) fn open(path: &Path) -> Result<DynamicLibrary, LoadError> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the name is a C string. The initialisers that run are those of the driver, as in any CUDA
        // program.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: `dlerror` returns a C string after a failure, valid until the next `dl` call of this
            // thread.
            let message = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(LoadError::Loader(message.to_string_lossy().into_owned()));
        }
        Ok(DynamicLibrary(handle))
    }

    /// Returns the address of a symbol.
    pub(crate) fn symbol(self, name: &str) -> Option<usize> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open and never closed, and the name is a C string.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) } as usize;
        (address != 0).then_some(address)
    }
}

/// Returns the library at this path, or the first one of this name. Never this library itself.
pub(crate) fn find_library(name: &str, path: Option<&Path>) -> Option<PathBuf> {
    let ours = own_file_id();
    let is_other = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| Some(FileId::of(&file)) != ours);
    if let Some(path) = path {
        return Some(path.into()).filter(is_other);
    }
    let library_path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let library_dirs: Vec<PathBuf> = std::env::split_paths(&library_path).collect();
    let driver_dirs = DRIVER_DIRS.iter().map(PathBuf::from);
    let directories = library_dirs.into_iter().chain(configured_dirs()).chain(driver_dirs);
    directories.map(|directory| directory.join(name)).find(is_other)
}

/// Returns the directories of the loader's configuration.
fn configured_dirs() -> Vec<PathBuf> {
    let files =
        std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok());
    let lines = texts.flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

/// Identifies a file, whatever names lead to it.
#[derive(PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(file: &std::fs::Metadata) -> FileId {
        FileId { device: file.dev(), inode: file.ino() }
    }
}

/// Returns the file that this code was loaded from.
fn own_file_id() -> Option<FileId> {
    // SAFETY: `Dl_info` consists of integers and pointers, so zeros are valid. `dladdr` fills it.
    let info = unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        (libc::dladdr(own_file_id as *const c_void, &mut info) != 0).then_some(info)?
    };
    // SAFETY: `dladdr` succeeded, so `dli_fname` is the path of this image, which is never unloaded.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    let file = std::fs::metadata(OsStr::from_bytes(path.to_bytes())).ok()?;
    Some(FileId::of(&file))
}
