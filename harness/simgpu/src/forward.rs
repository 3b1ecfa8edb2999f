//! Forwards to a real driver: looks up its functions, and wraps functions that it returns by pointer, so that
//! the hooks see their calls. Unsafe: calls functions that are only known by name. Must not know rules.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use simgpu_plan::Backend;

use crate::call_table::set_implementation;
use crate::codes;
use crate::faults::{FaultState, abort_with, chain_to, fault_state};
use crate::loader::{DynamicLibrary, LoadError, find_library};
use crate::locks::MutexExt;
use crate::symbols::{EXPORTED, NAMES, trampoline};

/// For tests: the plan directory of a shim that takes the place of the real driver.
const CHAINED_DIR_VARIABLE: &str = "TRAINWRECK_GPU_BEHIND";

/// Why calls cannot be forwarded.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    /// The plan names no library, and none is installed.
    #[error("no libcuda.so.1 was found; install a driver, or name the library in the plan")]
    NoDriver,
    /// The library was found, but cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
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

fn real_driver(faults: &FaultState) -> Option<&'static RealDriver> {
    static REAL: OnceLock<Option<RealDriver>> = OnceLock::new();
    REAL.get_or_init(|| match &faults.current_plan().plan.backend {
        Backend::Simulated(_) => None,
        Backend::Forwarded { libcuda, libnvidia_ml } => Some(
            RealDriver::open(libcuda.as_deref(), libnvidia_ml.as_deref())
                .unwrap_or_else(|error| abort_with(&error)),
        ),
    })
    .as_ref()
}

impl RealDriver {
    /// Opens libcuda, and libnvidia-ml if there is one.
    fn open(libcuda: Option<&Path>, libnvidia_ml: Option<&Path>) -> Result<RealDriver, ForwardError> {
        let path = find_library("libcuda.so.1", libcuda).ok_or(ForwardError::NoDriver)?;
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
    fn hooked(&self, faults: &FaultState, function: usize, name: &str) -> usize {
        let mut exported = self.hooked_by_address.locked();
        if let Some(hooked) = exported.get(&function) {
            return *hooked;
        }
        let index = faults.add_function(Box::leak(name.to_owned().into_boxed_str()));
        let hooked = match index.and_then(|index| Some((index, trampoline(index)?))) {
            Some((index, hooked)) => {
                set_implementation(index, function);
                hooked
            }
            // All trampolines are in use. The hooks do not see the calls of this function.
            None => function,
        };
        exported.insert(function, hooked);
        hooked
    }
}

/// Returns whether calls are forwarded to a real driver.
pub(crate) fn is_active(faults: &FaultState) -> bool {
    real_driver(faults).is_some()
}

/// Returns the function that implements a name, or `None` if the real driver does not have it.
pub(crate) fn implementation(faults: &FaultState, name: &str) -> Option<usize> {
    let address = real_driver(faults)?.cuda.symbol(name)?;
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
pub(crate) fn nvml_symbol(faults: &FaultState, name: &str) -> Option<usize> {
    real_driver(faults)?.nvml?.symbol(name)
}

/// Returns whether the calling thread has a current context.
pub(crate) fn has_context(faults: &FaultState) -> bool {
    let mut context = 0_usize;
    let Some(get) = real_driver(faults).and_then(|real| real.cuda.symbol("cuCtxGetCurrent")) else {
        return false;
    };
    // SAFETY: CUDA defines this type for `cuCtxGetCurrent`, and the argument is valid for a write.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut usize) -> u32 = std::mem::transmute(get);
        get(&mut context)
    };
    code == codes::SUCCESS && context != 0
}

/// Returns the name of a kernel: the one that the program looked up, or the one that the driver returns.
pub(crate) fn kernel_name(faults: &FaultState, handle: usize) -> Option<String> {
    let real = real_driver(faults)?;
    if let Some(name) = real.kernels.locked().get(&handle) {
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
    real.kernels.locked().insert(handle, name.clone());
    Some(name)
}

fn remember_kernel(handle: usize, name: String) {
    if let Some(real) = real_driver(fault_state()) {
        real.kernels.locked().insert(handle, name);
    }
}

/// Looks up a function of the real driver and converts it to a function type.
macro_rules! real_function {
    ($name:expr, $type:ty) => {
        match real_driver(fault_state()).and_then(|real| real.cuda.symbol($name)) {
            // SAFETY: CUDA defines this type for the function, and the driver is never unloaded.
            Some(address) => unsafe { std::mem::transmute::<usize, $type>(address) },
            None => return codes::NOT_SUPPORTED,
        }
    };
}

type GetKernel = unsafe extern "C" fn(*mut usize, usize, *const c_char) -> u32;

/// Looks up a kernel with a function of the real driver, and remembers the kernel's name.
///
/// # Safety
/// The arguments are as the driver's function `function` requires.
unsafe fn look_up_kernel(function: &str, out: *mut usize, module: usize, name: *const c_char) -> u32 {
    let real = real_function!(function, GetKernel);
    // SAFETY: the arguments go unchanged to the function that the program meant to call. It returns a success
    // only after it has read `name` and written `out`.
    unsafe {
        let code = real(out, module, name);
        if code == codes::SUCCESS {
            remember_kernel(*out, CStr::from_ptr(name).to_string_lossy().into_owned());
        }
        code
    }
}

/// # Safety
/// As for `cuModuleGetFunction`.
unsafe extern "C" fn module_get_function(out: *mut usize, module: usize, name: *const c_char) -> u32 {
    // SAFETY: the program passed these arguments to `cuModuleGetFunction`.
    unsafe { look_up_kernel("cuModuleGetFunction", out, module, name) }
}

/// # Safety
/// As for `cuLibraryGetKernel`.
unsafe extern "C" fn library_get_kernel(out: *mut usize, library: usize, name: *const c_char) -> u32 {
    // SAFETY: the program passed these arguments to `cuLibraryGetKernel`.
    unsafe { look_up_kernel("cuLibraryGetKernel", out, library, name) }
}

/// # Safety
/// As for `cuKernelGetFunction`.
unsafe extern "C" fn kernel_get_function(out: *mut usize, kernel: usize) -> u32 {
    let real = real_function!("cuKernelGetFunction", unsafe extern "C" fn(*mut usize, usize) -> u32);
    // SAFETY: the program passed these arguments to `cuKernelGetFunction`, which returns a success only after
    // it has written `out`.
    unsafe {
        let code = real(out, kernel);
        if code == codes::SUCCESS
            && let Some(name) = kernel_name(fault_state(), kernel)
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
    // SAFETY: the program passed these arguments to `cuGetProcAddress`, which returns a success only after it
    // has read `symbol` and written `out`.
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
    // SAFETY: the program passed these arguments to `cuGetProcAddress_v2`, which returns a success only after
    // it has read `symbol` and written `out`.
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
    let faults = fault_state();
    // SAFETY: the pointers are only used after a success, for which the caller promises that they are valid.
    unsafe {
        if code != codes::SUCCESS || out.is_null() || *out == 0 {
            return;
        }
        if let Some(real) = real_driver(faults) {
            *out = real.hooked(faults, *out, &CStr::from_ptr(symbol).to_string_lossy());
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
