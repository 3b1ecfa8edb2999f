//! Forwards to a real driver: finds it, looks up its functions, and wraps functions that it returns by
//! pointer, so that the hooks see their calls. Unsafe: calls libraries that are only known by name. Must not
//! know rules.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};

use simgpu_plan::Backend;

use crate::rules::{abort_with, chain_to, fault_state};
use crate::symbols::{EXPORTED, NAMES, trampoline};
use crate::{codes, hooks};

/// For tests: the plan directory of a shim that takes the place of the real driver.
const CHAINED_DIR_VARIABLE: &str = "TRAINWRECK_GPU_BEHIND";

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

/// A library that was opened and is never closed.
#[derive(Clone, Copy)]
struct DynamicLibrary(*mut c_void);

// SAFETY: `dlsym` accepts a handle on any thread.
unsafe impl Send for DynamicLibrary {}
// SAFETY: `dlsym` may be called on several threads at once.
unsafe impl Sync for DynamicLibrary {}

impl DynamicLibrary {
    fn open(path: &Path) -> Result<DynamicLibrary, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the name is a C string. The initialisers that run are those of the driver, as in any CUDA
        // program.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: `dlerror` returns a C string after a failure, valid until the next `dl` call of this
            // thread.
            let message = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(message.to_string_lossy().into_owned());
        }
        Ok(DynamicLibrary(handle))
    }

    fn symbol(self, name: &str) -> Option<usize> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open and never closed, and the name is a C string.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) } as usize;
        (address != 0).then_some(address)
    }
}

/// The real libraries, and what is known about their functions and kernels.
struct RealDriver {
    cuda: DynamicLibrary,
    nvml: Option<DynamicLibrary>,
    /// The hooked function for each function of the real driver, by address.
    hooked_by_address: Mutex<HashMap<usize, usize>>,
    /// Names of kernels, by handle.
    kernels: Mutex<HashMap<usize, String>>,
}

fn real_driver() -> Option<&'static RealDriver> {
    static REAL: OnceLock<Option<RealDriver>> = OnceLock::new();
    REAL.get_or_init(|| match &fault_state().current_plan().plan.backend {
        Backend::Simulated(_) => None,
        Backend::Forwarded { libcuda, libnvidia_ml } => Some(
            RealDriver::open(libcuda.as_deref(), libnvidia_ml.as_deref())
                .unwrap_or_else(|message| abort_with(&message)),
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
            .ok_or("no libcuda.so.1 was found; install a driver, or name the library in the plan")?;
        let cuda = DynamicLibrary::open(&path)?;
        if let Some(chain_to) = cuda.symbol("simgpu_chain_to") {
            let directory = std::env::var_os(CHAINED_DIR_VARIABLE)
                .and_then(|directory| CString::new(directory.as_bytes()).ok());
            // SAFETY: only a copy of this library has the symbol, with this type. The argument is null or a C
            // string.
            unsafe {
                let chain_to: unsafe extern "C" fn(*const c_char) = std::mem::transmute(chain_to);
                chain_to(directory.as_ref().map_or(std::ptr::null(), |directory| directory.as_ptr()));
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

    /// Returns the hooked function that leads to a function of the real driver: an exported one, or a
    /// trampoline that is assigned to the name.
    fn hooked(&self, function: usize, name: &str) -> usize {
        let mut exported = lock(&self.hooked_by_address);
        if let Some(hooked) = exported.get(&function) {
            return *hooked;
        }
        let index = fault_state().add_function(Box::leak(name.to_owned().into_boxed_str()));
        let hooked = match index.and_then(|index| Some((index, trampoline(index)?))) {
            Some((index, hooked)) => {
                hooks::set_implementation(index, function);
                hooked
            }
            // All trampolines are in use. The hooks do not see the calls of this function.
            None => function,
        };
        exported.insert(function, hooked);
        hooked
    }
}

/// Returns the library at this path, or the first one of this name. Never this library itself.
fn find_library(name: &str, path: Option<&Path>) -> Option<PathBuf> {
    let ours = own_file_id();
    let is_other =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| Some((file.dev(), file.ino())) != ours);
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

/// Returns the device and the inode of the file that this code was loaded from.
fn own_file_id() -> Option<(u64, u64)> {
    // SAFETY: `Dl_info` consists of integers and pointers, so zeros are valid. `dladdr` fills it.
    let info = unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        (libc::dladdr(own_file_id as *const c_void, &mut info) != 0).then_some(info)?
    };
    // SAFETY: `dladdr` succeeded, so `dli_fname` is the path of this image, which is never unloaded.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    let file = std::fs::metadata(OsStr::from_bytes(path.to_bytes())).ok()?;
    Some((file.dev(), file.ino()))
}

/// Returns whether calls are forwarded to a real driver.
pub(crate) fn is_active() -> bool {
    real_driver().is_some()
}

/// Returns the function that implements a name, or `None` if the real driver does not have it.
pub(crate) fn implementation(name: &str) -> Option<usize> {
    let address = real_driver()?.cuda.symbol(name)?;
    Some(match name {
        "cuGetProcAddress" => get_proc_address as *const () as usize,
        "cuGetProcAddress_v2" => get_proc_address_v2 as *const () as usize,
        "cuModuleGetFunction" => module_get_function as *const () as usize,
        "cuLibraryGetKernel" => library_get_kernel as *const () as usize,
        "cuKernelGetFunction" => kernel_get_function as *const () as usize,
        _ => address,
    })
}

/// Returns a function of the real NVML.
pub(crate) fn nvml_symbol(name: &str) -> Option<usize> {
    real_driver()?.nvml?.symbol(name)
}

/// Returns whether the calling thread has a current context.
pub(crate) fn has_context() -> bool {
    let mut context = 0_usize;
    let Some(get) = real_driver().and_then(|real| real.cuda.symbol("cuCtxGetCurrent")) else { return false };
    // SAFETY: CUDA defines this type for `cuCtxGetCurrent`, and the argument is valid for a write.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut usize) -> u32 = std::mem::transmute(get);
        get(&mut context)
    };
    code == codes::SUCCESS && context != 0
}

/// Returns the name of a kernel: the one that the program looked up, or the one that the driver returns.
pub(crate) fn kernel_name(handle: usize) -> Option<String> {
    let real = real_driver()?;
    if let Some(name) = lock(&real.kernels).get(&handle) {
        return Some(name.clone());
    }
    let get = real.cuda.symbol("cuFuncGetName")?;
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: CUDA defines this type for `cuFuncGetName`. The driver checks the handle and returns a C
    // string.
    let name = unsafe {
        let get: unsafe extern "C" fn(*mut *const c_char, usize) -> u32 = std::mem::transmute(get);
        (get(&mut name, handle) == codes::SUCCESS && !name.is_null()).then(|| CStr::from_ptr(name))?
    };
    let name = name.to_string_lossy().into_owned();
    lock(&real.kernels).insert(handle, name.clone());
    Some(name)
}

fn remember_kernel(handle: usize, name: String) {
    if let Some(real) = real_driver() {
        lock(&real.kernels).insert(handle, name);
    }
}

/// Looks up a function of the real driver and converts it to a function type.
macro_rules! real_function {
    ($name:literal, $type:ty) => {
        match real_driver().and_then(|real| real.cuda.symbol($name)) {
            // SAFETY: CUDA defines this type for the function, and the driver is never unloaded.
            Some(address) => unsafe { std::mem::transmute::<usize, $type>(address) },
            None => return codes::NOT_SUPPORTED,
        }
    };
}

/// # Safety
/// As for `cuModuleGetFunction`.
unsafe extern "C" fn module_get_function(out: *mut usize, module: usize, name: *const c_char) -> u32 {
    let real =
        real_function!("cuModuleGetFunction", unsafe extern "C" fn(*mut usize, usize, *const c_char) -> u32);
    // SAFETY: the caller meets the requirements of the forwarded function. After a success its arguments were
    // valid.
    unsafe {
        let code = real(out, module, name);
        if code == codes::SUCCESS {
            remember_kernel(*out, CStr::from_ptr(name).to_string_lossy().into_owned());
        }
        code
    }
}

/// # Safety
/// As for `cuLibraryGetKernel`.
unsafe extern "C" fn library_get_kernel(out: *mut usize, library: usize, name: *const c_char) -> u32 {
    let real =
        real_function!("cuLibraryGetKernel", unsafe extern "C" fn(*mut usize, usize, *const c_char) -> u32);
    // SAFETY: the caller meets the requirements of the forwarded function. After a success its arguments were
    // valid.
    unsafe {
        let code = real(out, library, name);
        if code == codes::SUCCESS {
            remember_kernel(*out, CStr::from_ptr(name).to_string_lossy().into_owned());
        }
        code
    }
}

/// # Safety
/// As for `cuKernelGetFunction`.
unsafe extern "C" fn kernel_get_function(out: *mut usize, kernel: usize) -> u32 {
    let real = real_function!("cuKernelGetFunction", unsafe extern "C" fn(*mut usize, usize) -> u32);
    // SAFETY: the caller meets the requirements of the forwarded function. After a success its arguments were
    // valid.
    unsafe {
        let code = real(out, kernel);
        if code == codes::SUCCESS
            && let Some(name) = kernel_name(kernel)
        {
            remember_kernel(*out, name);
        }
        code
    }
}

/// # Safety
/// As for `cuGetProcAddress`.
unsafe extern "C" fn get_proc_address(
    symbol: *const c_char,
    out: *mut usize,
    version: i32,
    flags: u64,
) -> u32 {
    type GetProcAddress = unsafe extern "C" fn(*const c_char, *mut usize, i32, u64) -> u32;
    let real = real_function!("cuGetProcAddress", GetProcAddress);
    // SAFETY: the caller meets the requirements of the forwarded function. After a success its arguments were
    // valid.
    unsafe {
        let code = real(symbol, out, version, flags);
        hook_result(code, symbol, out);
        code
    }
}

/// # Safety
/// As for `cuGetProcAddress_v2`.
unsafe extern "C" fn get_proc_address_v2(
    symbol: *const c_char,
    out: *mut usize,
    version: i32,
    flags: u64,
    status: *mut u32,
) -> u32 {
    type GetProcAddressV2 = unsafe extern "C" fn(*const c_char, *mut usize, i32, u64, *mut u32) -> u32;
    let real = real_function!("cuGetProcAddress_v2", GetProcAddressV2);
    // SAFETY: the caller meets the requirements of the forwarded function. After a success its arguments were
    // valid.
    unsafe {
        let code = real(symbol, out, version, flags, status);
        hook_result(code, symbol, out);
        code
    }
}

/// Replaces a function that the driver returned with its hooked version.
///
/// # Safety
/// If `code` is a success, `symbol` is a C string and `out` is null or points to a function.
unsafe fn hook_result(code: u32, symbol: *const c_char, out: *mut usize) {
    // SAFETY: the pointers are only used after a success, for which the caller promises that they are valid.
    unsafe {
        if code != codes::SUCCESS || out.is_null() || *out == 0 {
            return;
        }
        if let Some(real) = real_driver() {
            *out = real.hooked(*out, &CStr::from_ptr(symbol).to_string_lossy());
        }
    }
}

/// For tests. The shim in front calls this before any other function: this copy takes the place of the real
/// driver, and reads its plan from `directory`, or has none if it is null.
///
/// # Safety
/// `directory` is null or a C string.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn simgpu_chain_to(directory: *const c_char) {
    // SAFETY: `directory` is not null here, so the caller promises a C string.
    let directory =
        (!directory.is_null()).then(|| unsafe { CStr::from_ptr(directory) }.to_string_lossy().into_owned());
    chain_to(directory);
}
