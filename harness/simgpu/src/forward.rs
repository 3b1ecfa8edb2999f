//! In front of a real driver: finds it, hands calls on, and keeps functions that it gives out by pointer within sight of the
//! hooks. Unsafe: it calls libraries that are only known by name. It must not know rules.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};

use simgpu_plan::Backend;

use crate::rules::{abort_with, chain_to, fault_state};
use crate::symbols::{EXPORTED, NAMES, spare};
use crate::{codes, hooks};

/// Folder of the plan of a stand-in that stands behind this one; for tests.
const CHAINED_DIR_VARIABLE: &str = "TRAINWRECK_GPU_BEHIND";

/// Where drivers are installed, after the folders that the loader is told to search.
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

/// A library that was opened; it stays open.
#[derive(Clone, Copy)]
struct DynamicLibrary(*mut c_void);

// SAFETY: a handle of the loader may be used by any thread.
unsafe impl Send for DynamicLibrary {}
// SAFETY: as above.
unsafe impl Sync for DynamicLibrary {}

impl DynamicLibrary {
    fn open(path: &Path) -> Result<DynamicLibrary, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: opens a library that the plan, or the machine, says is the driver.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure there is a message.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(why.to_string_lossy().into_owned());
        }
        Ok(DynamicLibrary(handle))
    }

    fn symbol(self, name: &str) -> Option<usize> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle was opened and is never closed.
        let at = unsafe { libc::dlsym(self.0, name.as_ptr()) } as usize;
        (at != 0).then_some(at)
    }
}

/// The real libraries, and what was learned of them.
struct RealDriver {
    cuda: DynamicLibrary,
    nvml: Option<DynamicLibrary>,
    /// The exported function for each function of the real driver.
    hooked_by_address: Mutex<HashMap<usize, usize>>,
    kernels: Mutex<HashMap<usize, String>>,
}

fn real() -> Option<&'static RealDriver> {
    static REAL: OnceLock<Option<RealDriver>> = OnceLock::new();
    REAL.get_or_init(|| match &fault_state().current_plan().plan.backend {
        Backend::Simulated(_) => None,
        Backend::Forwarded { libcuda, libnvidia_ml } => Some(
            RealDriver::open(libcuda.as_deref(), libnvidia_ml.as_deref())
                .unwrap_or_else(|why| abort_with(&why)),
        ),
    })
    .as_ref()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl RealDriver {
    fn open(libcuda: Option<&Path>, libnvidia_ml: Option<&Path>) -> Result<RealDriver, String> {
        let path = find_library("libcuda.so.1", libcuda)
            .ok_or("there is no real libcuda.so.1: name it in the plan")?;
        let cuda = DynamicLibrary::open(&path)?;
        if let Some(behind) = cuda.symbol("simgpu_stand_behind") {
            let folder = std::env::var_os(CHAINED_DIR_VARIABLE)
                .and_then(|folder| CString::new(folder.as_bytes()).ok());
            // SAFETY: a library with this symbol is a copy of ours.
            unsafe {
                let behind: unsafe extern "C" fn(*const c_char) = std::mem::transmute(behind);
                behind(folder.as_ref().map_or(std::ptr::null(), |folder| folder.as_ptr()));
            }
        }
        let nvml =
            find_library("libnvidia-ml.so.1", libnvidia_ml).and_then(|path| DynamicLibrary::open(&path).ok());
        let pairs = NAMES[..EXPORTED.len()].iter().zip(EXPORTED);
        let exported = pairs
            .filter_map(|(name, exported)| Some((cuda.symbol(name)?, *exported as *const () as usize)))
            .collect();
        Ok(RealDriver {
            cuda,
            nvml,
            hooked_by_address: Mutex::new(exported),
            kernels: Mutex::new(HashMap::new()),
        })
    }

    /// The exported function that leads to one of the real driver: from the list, or one to spare that learns the name.
    fn hooked(&self, function: usize, name: &str) -> usize {
        let mut exported = lock(&self.hooked_by_address);
        if let Some(known) = exported.get(&function) {
            return *known;
        }
        let index = fault_state().add_function(Box::leak(name.to_owned().into_boxed_str()));
        let at = match index.and_then(|index| Some((index, spare(index)?))) {
            Some((index, at)) => {
                hooks::set_implementation(index, function);
                at
            }
            // No more to spare: the call goes by unseen.
            None => function,
        };
        exported.insert(function, at);
        at
    }
}

/// The library at this path, or the first of this name that is not this one.
fn find_library(name: &str, path: Option<&Path>) -> Option<PathBuf> {
    let ours = own_file_id();
    let is_other =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| Some((file.dev(), file.ino())) != ours);
    if let Some(path) = path {
        return Some(path.into()).filter(is_other);
    }
    let told = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let told: Vec<PathBuf> = std::env::split_paths(&told).collect();
    let folders = told.into_iter().chain(configured_dirs()).chain(DRIVER_DIRS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(is_other)
}

/// Folders of the loader's configuration.
fn configured_dirs() -> Vec<PathBuf> {
    let files =
        std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok());
    let lines = texts.flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

/// Device and inode of the file that this code was loaded from.
fn own_file_id() -> Option<(u64, u64)> {
    // SAFETY: all zeroes is a valid Dl_info, and the loader fills it for an address of this image.
    let info = unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        (libc::dladdr(own_file_id as *const c_void, &mut info) != 0).then_some(info)?
    };
    // SAFETY: the loader's string of this image's path.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    let file = std::fs::metadata(OsStr::from_bytes(path.to_bytes())).ok()?;
    Some((file.dev(), file.ino()))
}

pub(crate) fn is_active() -> bool {
    real().is_some()
}

/// Where a function goes on; none: the real driver does not have it.
pub(crate) fn implementation(name: &str) -> Option<usize> {
    let there = real()?.cuda.symbol(name)?;
    Some(match name {
        "cuGetProcAddress" => get_proc_address as *const () as usize,
        "cuGetProcAddress_v2" => get_proc_address_v2 as *const () as usize,
        "cuModuleGetFunction" => module_get_function as *const () as usize,
        "cuLibraryGetKernel" => library_get_kernel as *const () as usize,
        "cuKernelGetFunction" => kernel_get_function as *const () as usize,
        _ => there,
    })
}

/// A function of the real NVML.
pub(crate) fn nvml(name: &str) -> Option<usize> {
    real()?.nvml?.symbol(name)
}

/// Whether the calling thread works in a context.
pub(crate) fn has_context() -> bool {
    let mut context = 0_usize;
    let Some(get) = real().and_then(|real| real.cuda.symbol("cuCtxGetCurrent")) else { return false };
    // SAFETY: the type of this function.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut usize) -> u32 = std::mem::transmute(get);
        get(&mut context)
    };
    code == codes::SUCCESS && context != 0
}

/// The name of a kernel: as it was asked for, or as the driver tells it.
pub(crate) fn kernel_name(handle: usize) -> Option<String> {
    let real = real()?;
    if let Some(name) = lock(&real.kernels).get(&handle) {
        return Some(name.clone());
    }
    let get = real.cuda.symbol("cuFuncGetName")?;
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the type of this function; the driver checks the handle.
    let told = unsafe {
        let get: unsafe extern "C" fn(*mut *const c_char, usize) -> u32 = std::mem::transmute(get);
        (get(&mut name, handle) == codes::SUCCESS && !name.is_null()).then(|| CStr::from_ptr(name))?
    };
    let told = told.to_string_lossy().into_owned();
    lock(&real.kernels).insert(handle, told.clone());
    Some(told)
}

fn remember_kernel(handle: usize, name: String) {
    if let Some(real) = real() {
        lock(&real.kernels).insert(handle, name);
    }
}

/// The real function of a name, as a type of function.
macro_rules! real_function {
    ($name:literal, $type:ty) => {
        match real().and_then(|real| real.cuda.symbol($name)) {
            // SAFETY: the type that CUDA gives this function.
            Some(at) => unsafe { std::mem::transmute::<usize, $type>(at) },
            None => return codes::NOT_SUPPORTED,
        }
    };
}

/// # Safety
/// As of `cuModuleGetFunction`.
unsafe extern "C" fn module_get_function(place: *mut usize, module: usize, name: *const c_char) -> u32 {
    let real =
        real_function!("cuModuleGetFunction", unsafe extern "C" fn(*mut usize, usize, *const c_char) -> u32);
    // SAFETY: the caller's arguments go on as they are; after a success they were valid.
    unsafe {
        let code = real(place, module, name);
        if code == codes::SUCCESS {
            remember_kernel(*place, CStr::from_ptr(name).to_string_lossy().into_owned());
        }
        code
    }
}

/// # Safety
/// As of `cuLibraryGetKernel`.
unsafe extern "C" fn library_get_kernel(place: *mut usize, library: usize, name: *const c_char) -> u32 {
    let real =
        real_function!("cuLibraryGetKernel", unsafe extern "C" fn(*mut usize, usize, *const c_char) -> u32);
    // SAFETY: as above.
    unsafe {
        let code = real(place, library, name);
        if code == codes::SUCCESS {
            remember_kernel(*place, CStr::from_ptr(name).to_string_lossy().into_owned());
        }
        code
    }
}

/// # Safety
/// As of `cuKernelGetFunction`.
unsafe extern "C" fn kernel_get_function(place: *mut usize, kernel: usize) -> u32 {
    let real = real_function!("cuKernelGetFunction", unsafe extern "C" fn(*mut usize, usize) -> u32);
    // SAFETY: as above.
    unsafe {
        let code = real(place, kernel);
        if code == codes::SUCCESS
            && let Some(name) = kernel_name(kernel)
        {
            remember_kernel(*place, name);
        }
        code
    }
}

/// # Safety
/// As of `cuGetProcAddress`.
unsafe extern "C" fn get_proc_address(
    symbol: *const c_char,
    place: *mut usize,
    version: i32,
    flags: u64,
) -> u32 {
    type Function = unsafe extern "C" fn(*const c_char, *mut usize, i32, u64) -> u32;
    let real = real_function!("cuGetProcAddress", Function);
    // SAFETY: as above.
    unsafe {
        let code = real(symbol, place, version, flags);
        hook_result(code, symbol, place);
        code
    }
}

/// # Safety
/// As of `cuGetProcAddress_v2`.
unsafe extern "C" fn get_proc_address_v2(
    symbol: *const c_char,
    place: *mut usize,
    version: i32,
    flags: u64,
    status: *mut u32,
) -> u32 {
    type Function = unsafe extern "C" fn(*const c_char, *mut usize, i32, u64, *mut u32) -> u32;
    let real = real_function!("cuGetProcAddress_v2", Function);
    // SAFETY: as above.
    unsafe {
        let code = real(symbol, place, version, flags, status);
        hook_result(code, symbol, place);
        code
    }
}

/// # Safety
/// After a success both are valid.
unsafe fn hook_result(code: u32, symbol: *const c_char, place: *mut usize) {
    // SAFETY: the caller's.
    unsafe {
        if code != codes::SUCCESS || place.is_null() || *place == 0 {
            return;
        }
        if let Some(real) = real() {
            *place = real.hooked(*place, &CStr::from_ptr(symbol).to_string_lossy());
        }
    }
}

/// Said by the copy in front, before any other call: this one stands behind, and its plan lies in another folder.
///
/// # Safety
/// `folder` is null or a string of C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn simgpu_stand_behind(folder: *const c_char) {
    // SAFETY: the caller's.
    let folder =
        (!folder.is_null()).then(|| unsafe { CStr::from_ptr(folder) }.to_string_lossy().into_owned());
    chain_to(folder);
}
