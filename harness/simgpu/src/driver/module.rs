//! Modules, libraries and functions: which kernels a program may launch. Must not know how a kernel runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::{CString, c_char, c_void};

use crate::{codes, kernels};

use super::context::current_context;
use super::info::max_dynamic_shared_bytes;
use super::operations::Handle;
use super::state::{SimFunction, SimModule, gpu};
use super::sys::{c_str, result_code, write_out};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const ATTR_MAX_DYNAMIC_SHARED_BYTES: u32 = 8;

/// Returns the newest PTX version that a driver supports: 8.7 for CUDA 12.8. Source: the PTX ISA's release
/// notes.
fn max_ptx_version(driver_version: i32) -> (u32, u32) {
    let (major, minor) = ((driver_version / 1000) as u32, (driver_version % 1000 / 10) as u32);
    match (major, minor) {
        (11, minor) => (7, minor.min(8)),
        (12, minor @ 0..=4) => (8, minor),
        (12, 5 | 6) => (8, 5),
        (12, minor) => (8, minor - 1),
        (13, minor) => (9, minor),
        _ => (major.saturating_sub(4), minor),
    }
}

/// Returns the version and the names of the entries of PTX text.
fn parse_ptx(ptx: &str) -> Option<((u32, u32), Vec<String>)> {
    let version = ptx.lines().find_map(|line| line.trim().strip_prefix(".version"))?.trim();
    let (major, minor) = version.split_once('.')?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let names = ptx.split(".entry").skip(1).map(|rest| {
        let is_name = |c: &char| c.is_ascii_alphanumeric() || "_$".contains(*c);
        rest.trim_start().chars().take_while(is_name).collect()
    });
    Some(((digits(major)?, digits(minor)?), names.collect()))
}

/// # Safety
/// `image` is null or an image as CUDA defines it: PTX as a C string, or a binary that starts with its magic
/// number.
unsafe fn load_module(image: *const c_void) -> Result<Handle, u32> {
    current_context()?;
    if image.is_null() {
        return Err(codes::INVALID_VALUE);
    }
    // SAFETY: `image` is not null, so the caller promises an image, and each image has at least four bytes.
    let magic = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    let entry_names = match magic {
        // ELF, and a fat binary. Their names are not read.
        [0x7F, b'E', b'L', b'F'] | [0x50, 0xED, 0x55, 0xBA] => None,
        _ => {
            // SAFETY: it is not a binary, so the caller promises a C string.
            let ptx = unsafe { c_str(image.cast()) }.ok_or(codes::INVALID_IMAGE)?;
            let (version, names) = parse_ptx(ptx).ok_or(codes::INVALID_IMAGE)?;
            if version > max_ptx_version(gpu().machine.driver_version) {
                return Err(codes::UNSUPPORTED_PTX_VERSION);
            }
            Some(names)
        }
    };
    let mut gpu = gpu();
    let handle = gpu.new_handle();
    gpu.modules.insert(handle, SimModule { entry_names });
    Ok(handle)
}

/// # Safety
/// `image` is as for [`load_module`]. `out` is null or valid for a write.
unsafe fn load_into(out: *mut Handle, image: *const c_void) -> u32 {
    // SAFETY: the caller promises that `image` is null or an image.
    match unsafe { load_module(image) } {
        // SAFETY: the caller promises that `out` is null or valid for a write.
        Ok(handle) => unsafe { write_out(out, handle) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuModuleLoadData(out: *mut Handle, image: *const c_void) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write and `image` to be an image; null is checked.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut Handle,
    image: *const c_void,
    _count: u32,
    _options: *mut u32,
    _values: *mut *mut c_void,
) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write and `image` to be an image; null is checked.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuModuleLoadFatBinary(out: *mut Handle, image: *const c_void) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write and `image` to be an image; null is checked.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuModuleLoad(out: *mut Handle, path: *const c_char) -> u32 {
    // SAFETY: CUDA requires `path` to be a C string; `c_str` checks for null.
    let read = unsafe { c_str(path) }.and_then(|path| std::fs::read(path).ok());
    let Some(mut image) = read else { return codes::FILE_NOT_FOUND };
    image.extend([0; 4]);
    // SAFETY: the added zeros end the text, and make the image at least as long as a magic number.
    unsafe { load_into(out, image.as_ptr().cast()) }
}

pub(super) unsafe extern "C" fn cuModuleUnload(module: Handle) -> u32 {
    result_code(current_context().and_then(|_| {
        let mut gpu = gpu();
        gpu.functions.retain(|_, function| function.module != module);
        gpu.modules.remove(&module).map(|_| ()).ok_or(codes::INVALID_HANDLE)
    }))
}

fn find_function(module: Handle, name: &str) -> Result<Handle, u32> {
    let mut gpu = gpu();
    let entries = &gpu.modules.get(&module).ok_or(codes::INVALID_HANDLE)?.entry_names;
    if entries.as_ref().is_some_and(|entries| !entries.iter().any(|entry| entry == name)) {
        return Err(codes::NOT_FOUND);
    }
    let kernel = kernels::find_kernel(name).ok_or(codes::NOT_FOUND)?;
    let existing =
        gpu.functions.iter().find(|(_, function)| function.module == module && function.kernel.name == name);
    if let Some((handle, _)) = existing {
        return Ok(*handle);
    }
    let handle = gpu.new_handle();
    let name = CString::new(kernel.name).map_err(|_| codes::INVALID_VALUE)?;
    gpu.functions.insert(handle, SimFunction { kernel, name, module, max_shared_bytes: 49_152 });
    Ok(handle)
}

pub(super) unsafe extern "C" fn cuModuleGetFunction(
    out: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> u32 {
    // SAFETY: CUDA requires `name` to be a C string; `c_str` checks for null.
    let Some(name) = (unsafe { c_str(name) }) else { return codes::INVALID_VALUE };
    match find_function(module, name) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Ok(handle) => unsafe { write_out(out, handle) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuModuleGetGlobal_v2(
    _out: *mut usize,
    _bytes: *mut usize,
    _module: Handle,
    _name: *const c_char,
) -> u32 {
    codes::NOT_FOUND
}

pub(super) unsafe extern "C" fn cuModuleGetLoadingMode(out: *mut u32) -> u32 {
    // CU_MODULE_EAGER_LOADING is 1.
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, 1) }
}

pub(super) unsafe extern "C" fn cuLibraryLoadData(
    out: *mut Handle,
    image: *const c_void,
    _options: *mut u32,
    _values: *mut *mut c_void,
    _count: u32,
    _library_options: *mut u32,
    _library_values: *mut *mut c_void,
    _library_count: u32,
) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write and `image` to be an image; null is checked.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuLibraryUnload(library: Handle) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuModuleUnload`.
    unsafe { cuModuleUnload(library) }
}

pub(super) unsafe extern "C" fn cuLibraryGetKernel(
    out: *mut Handle,
    library: Handle,
    name: *const c_char,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuModuleGetFunction`.
    unsafe { cuModuleGetFunction(out, library, name) }
}

/// In the simulation a library is its module, and a kernel is its function.
pub(super) unsafe extern "C" fn cuLibraryGetModule(out: *mut Handle, library: Handle) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, library) }
}

pub(super) unsafe extern "C" fn cuKernelGetFunction(out: *mut Handle, kernel: Handle) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, kernel) }
}

/// Returns the name of a kernel, for rules.
pub(crate) fn kernel_name(handle: usize) -> Option<String> {
    gpu().functions.get(&(handle as Handle)).map(|function| function.kernel.name.into())
}

pub(super) unsafe extern "C" fn cuFuncGetName(out: *mut *const c_char, handle: Handle) -> u32 {
    let name = gpu().functions.get(&handle).map(|function| function.name.as_ptr());
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null. The string lives as
    // long as its module.
    name.map_or(codes::INVALID_HANDLE, |name| unsafe { write_out(out, name) })
}

pub(super) unsafe extern "C" fn cuKernelGetName(out: *mut *const c_char, handle: Handle) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuFuncGetName`.
    unsafe { cuFuncGetName(out, handle) }
}

pub(super) unsafe extern "C" fn cuFuncGetModule(out: *mut Handle, handle: Handle) -> u32 {
    let module = gpu().functions.get(&handle).map(|function| function.module);
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    module.map_or(codes::INVALID_HANDLE, |module| unsafe { write_out(out, module) })
}

pub(super) unsafe extern "C" fn cuFuncGetAttribute(out: *mut i32, attribute: u32, handle: Handle) -> u32 {
    let value = {
        let gpu = gpu();
        let Some(function) = gpu.functions.get(&handle) else { return codes::INVALID_HANDLE };
        let (major, minor) = gpu.machine.compute_capability;
        match attribute {
            0 => 1024,
            4 => 32,
            5 | 6 => major * 10 + minor,
            ATTR_MAX_DYNAMIC_SHARED_BYTES => function.max_shared_bytes as i32,
            _ => 0,
        }
    };
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, value) }
}

pub(super) unsafe extern "C" fn cuFuncSetAttribute(handle: Handle, attribute: u32, value: i32) -> u32 {
    let mut gpu = gpu();
    let max_bytes = max_dynamic_shared_bytes(gpu.machine.compute_capability);
    let Some(function) = gpu.functions.get_mut(&handle) else { return codes::INVALID_HANDLE };
    match (attribute, usize::try_from(value)) {
        (ATTR_MAX_DYNAMIC_SHARED_BYTES, Ok(bytes)) if bytes <= max_bytes => {
            function.max_shared_bytes = bytes;
            codes::SUCCESS
        }
        (ATTR_MAX_DYNAMIC_SHARED_BYTES, _) => codes::INVALID_VALUE,
        _ => codes::SUCCESS,
    }
}

pub(super) unsafe extern "C" fn cuKernelGetAttribute(
    out: *mut i32,
    attribute: u32,
    kernel: Handle,
    _device: i32,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuFuncGetAttribute`.
    unsafe { cuFuncGetAttribute(out, attribute, kernel) }
}

pub(super) unsafe extern "C" fn cuKernelSetAttribute(
    attribute: u32,
    value: i32,
    kernel: Handle,
    _device: i32,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuFuncSetAttribute`.
    unsafe { cuFuncSetAttribute(kernel, attribute, value) }
}

pub(super) unsafe extern "C" fn cuFuncSetCacheConfig(_handle: Handle, _config: u32) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuFuncLoad(_handle: Handle) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuFuncIsLoaded(out: *mut u32, _handle: Handle) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, 1) }
}

/// Returns how many blocks fit on a multiprocessor, by threads and shared memory. The use of registers is
/// unknown.
fn active_blocks(block: i32, shared: usize) -> i32 {
    let by_threads = 2048 / block.max(1);
    let by_shared = 233_472 / (shared + 1024);
    by_threads.min(by_shared as i32).min(32)
}

pub(super) unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: *mut i32,
    _handle: Handle,
    block: i32,
    shared: usize,
) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, active_blocks(block, shared)) }
}

pub(super) unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: *mut i32,
    _handle: Handle,
    block: i32,
    shared: usize,
    _flags: u32,
) -> u32 {
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, active_blocks(block, shared)) }
}

pub(super) unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut i32,
    block: *mut i32,
    _handle: Handle,
    _shared_of: *const c_void,
    _shared: usize,
    limit: i32,
) -> u32 {
    let size = if limit > 0 { limit.min(1024) } else { 1024 };
    // SAFETY: CUDA requires `grid` and `block` to be valid for writes; `write_out` checks for null.
    unsafe { write_out(grid, 8 * active_blocks(size, 0)) | write_out(block, size) }
}

pub(super) unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut i32,
    block: *mut i32,
    handle: Handle,
    shared_of: *const c_void,
    shared: usize,
    limit: i32,
    _flags: u32,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuOccupancyMaxPotentialBlockSize`.
    unsafe { cuOccupancyMaxPotentialBlockSize(grid, block, handle, shared_of, shared, limit) }
}

pub(super) unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    out: *mut usize,
    _handle: Handle,
    blocks: i32,
    _block: i32,
) -> u32 {
    let max_bytes = max_dynamic_shared_bytes(gpu().machine.compute_capability);
    // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(out, (233_472 / blocks.max(1) as usize).saturating_sub(1024).min(max_bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_version_has_its_ptx_version() {
        assert_eq!(max_ptx_version(12_080), (8, 7));
        assert_eq!(max_ptx_version(12_060), (8, 5));
        assert_eq!(max_ptx_version(12_000), (8, 0));
        assert_eq!(max_ptx_version(11_040), (7, 4));
        assert_eq!(max_ptx_version(13_000), (9, 0));
    }

    #[test]
    fn entries_of_ptx_are_found_with_any_text_around_them() {
        let ptx =
            "//\n.version 8.7\n.target sm_80\n.visible .entry one(\n.param .u64 a)\n{}\n.entry\n two()\n{}";
        assert_eq!(parse_ptx(ptx), Some(((8, 7), vec!["one".into(), "two".into()])));
        assert_eq!(parse_ptx("no ptx"), None);
    }
}
