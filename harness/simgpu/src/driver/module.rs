//! Modules, libraries and functions: which kernels a program may launch. Unsafe: reads images of modules. Must
//! not know how a kernel runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::{CString, c_char, c_void};

use crate::{codes, kernels};

use super::context::current_context;
use super::limits::{
    ComputeCapability, DEFAULT_SHARED_BYTES, MAX_BLOCKS_PER_MULTIPROCESSOR, MAX_THREADS_PER_BLOCK,
    MAX_THREADS_PER_MULTIPROCESSOR, MULTIPROCESSORS, RESERVED_SHARED_BYTES_PER_BLOCK,
    SHARED_BYTES_PER_MULTIPROCESSOR, max_dynamic_shared_bytes,
};
use super::operations::Handle;
use super::state::{SimFunction, SimModule, gpu};
use super::sys::{Out, TextArgument, result_code};

/// `CUfunction_attribute`.
const ATTR_MAX_THREADS_PER_BLOCK: u32 = 0;
const ATTR_NUM_REGS: u32 = 4;
const ATTR_PTX_VERSION: u32 = 5;
const ATTR_BINARY_VERSION: u32 = 6;
const ATTR_MAX_DYNAMIC_SHARED_BYTES: u32 = 8;

/// The registers that each function is said to use: the simulation has none.
const REGISTERS_PER_THREAD: i32 = 32;

/// `CU_MODULE_EAGER_LOADING`.
const EAGER_LOADING: u32 = 1;

/// The first bytes of an ELF file and of a fat binary.
const ELF_MAGIC: [u8; 4] = [0x7F, b'E', b'L', b'F'];
const FAT_BINARY_MAGIC: [u8; 4] = [0x50, 0xED, 0x55, 0xBA];

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
        // Their names are not read.
        ELF_MAGIC | FAT_BINARY_MAGIC => None,
        _ => {
            // SAFETY: it is not a binary, so the caller promises a C string, which lives during the call.
            let ptx = unsafe { TextArgument::from_pointer(image.cast()) };
            let (version, names) = ptx.as_str().and_then(parse_ptx).ok_or(codes::INVALID_IMAGE)?;
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
/// `image` is as for [`load_module`].
unsafe fn load_into(out: Out<Handle>, image: *const c_void) -> u32 {
    // SAFETY: `load_module` requires of the image what this function requires of its caller.
    out.write_result(unsafe { load_module(image) })
}

pub(super) unsafe extern "C" fn cuModuleLoadData(out: Out<Handle>, image: *const c_void) -> u32 {
    // SAFETY: CUDA requires `image` to be null or an image.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuModuleLoadDataEx(
    out: Out<Handle>,
    image: *const c_void,
    _count: u32,
    _options: *mut u32,
    _values: *mut *mut c_void,
) -> u32 {
    // SAFETY: CUDA requires `image` to be null or an image.
    unsafe { load_into(out, image) }
}

pub(super) unsafe extern "C" fn cuModuleLoadFatBinary(out: Out<Handle>, image: *const c_void) -> u32 {
    // SAFETY: CUDA requires `image` to be null or an image.
    unsafe { load_into(out, image) }
}

pub(super) extern "C" fn cuModuleLoad(out: Out<Handle>, path: TextArgument) -> u32 {
    let read = path.as_str().and_then(|path| std::fs::read(path).ok());
    let Some(mut image) = read else { return codes::FILE_NOT_FOUND };
    image.extend([0; 4]);
    // SAFETY: the added zeros end the text, and make the image at least as long as a magic number.
    unsafe { load_into(out, image.as_ptr().cast()) }
}

pub(super) extern "C" fn cuModuleUnload(module: Handle) -> u32 {
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
    gpu.functions
        .insert(handle, SimFunction { kernel, name, module, max_shared_bytes: DEFAULT_SHARED_BYTES });
    Ok(handle)
}

pub(super) extern "C" fn cuModuleGetFunction(out: Out<Handle>, module: Handle, name: TextArgument) -> u32 {
    let Some(name) = name.as_str() else { return codes::INVALID_VALUE };
    out.write_result(find_function(module, name))
}

pub(super) extern "C" fn cuModuleGetGlobal_v2(
    _out: *mut usize,
    _bytes: *mut usize,
    _module: Handle,
    _name: TextArgument,
) -> u32 {
    codes::NOT_FOUND
}

pub(super) extern "C" fn cuModuleGetLoadingMode(out: Out<u32>) -> u32 {
    out.write(EAGER_LOADING)
}

pub(super) unsafe extern "C" fn cuLibraryLoadData(
    out: Out<Handle>,
    image: *const c_void,
    _options: *mut u32,
    _values: *mut *mut c_void,
    _count: u32,
    _library_options: *mut u32,
    _library_values: *mut *mut c_void,
    _library_count: u32,
) -> u32 {
    // SAFETY: CUDA requires `image` to be null or an image.
    unsafe { load_into(out, image) }
}

pub(super) extern "C" fn cuLibraryUnload(library: Handle) -> u32 {
    cuModuleUnload(library)
}

pub(super) extern "C" fn cuLibraryGetKernel(out: Out<Handle>, library: Handle, name: TextArgument) -> u32 {
    cuModuleGetFunction(out, library, name)
}

/// In the simulation a library is its module, and a kernel is its function.
pub(super) extern "C" fn cuLibraryGetModule(out: Out<Handle>, library: Handle) -> u32 {
    out.write(library)
}

pub(super) extern "C" fn cuKernelGetFunction(out: Out<Handle>, kernel: Handle) -> u32 {
    out.write(kernel)
}

/// Returns the name of a kernel, for rules.
pub(crate) fn kernel_name(handle: usize) -> Option<String> {
    gpu().functions.get(&(handle as Handle)).map(|function| function.kernel.name.into())
}

pub(super) extern "C" fn cuFuncGetName(out: Out<*const c_char>, handle: Handle) -> u32 {
    let name = gpu().functions.get(&handle).map(|function| function.name.as_ptr());
    name.map_or(codes::INVALID_HANDLE, |name| out.write(name))
}

pub(super) extern "C" fn cuKernelGetName(out: Out<*const c_char>, handle: Handle) -> u32 {
    cuFuncGetName(out, handle)
}

pub(super) extern "C" fn cuFuncGetModule(out: Out<Handle>, handle: Handle) -> u32 {
    let module = gpu().functions.get(&handle).map(|function| function.module);
    module.map_or(codes::INVALID_HANDLE, |module| out.write(module))
}

pub(super) extern "C" fn cuFuncGetAttribute(out: Out<i32>, attribute: u32, handle: Handle) -> u32 {
    let value = {
        let gpu = gpu();
        let Some(function) = gpu.functions.get(&handle) else { return codes::INVALID_HANDLE };
        let ComputeCapability { major, minor } = gpu.compute_capability();
        match attribute {
            ATTR_MAX_THREADS_PER_BLOCK => MAX_THREADS_PER_BLOCK as i32,
            ATTR_NUM_REGS => REGISTERS_PER_THREAD,
            ATTR_PTX_VERSION | ATTR_BINARY_VERSION => major * 10 + minor,
            ATTR_MAX_DYNAMIC_SHARED_BYTES => function.max_shared_bytes as i32,
            _ => 0,
        }
    };
    out.write(value)
}

pub(super) extern "C" fn cuFuncSetAttribute(handle: Handle, attribute: u32, value: i32) -> u32 {
    let mut gpu = gpu();
    let max_bytes = max_dynamic_shared_bytes(gpu.compute_capability());
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

pub(super) extern "C" fn cuKernelGetAttribute(
    out: Out<i32>,
    attribute: u32,
    kernel: Handle,
    _device: i32,
) -> u32 {
    cuFuncGetAttribute(out, attribute, kernel)
}

pub(super) extern "C" fn cuKernelSetAttribute(
    attribute: u32,
    value: i32,
    kernel: Handle,
    _device: i32,
) -> u32 {
    cuFuncSetAttribute(kernel, attribute, value)
}

pub(super) extern "C" fn cuFuncSetCacheConfig(_handle: Handle, _config: u32) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuFuncLoad(_handle: Handle) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuFuncIsLoaded(out: Out<u32>, _handle: Handle) -> u32 {
    out.write(1)
}

/// Returns how many blocks fit on a multiprocessor, by threads and shared memory. The use of registers is
/// unknown.
fn active_blocks(block: i32, shared: usize) -> i32 {
    let by_threads = MAX_THREADS_PER_MULTIPROCESSOR / block.max(1);
    let by_shared = SHARED_BYTES_PER_MULTIPROCESSOR / (shared + RESERVED_SHARED_BYTES_PER_BLOCK);
    by_threads.min(by_shared as i32).min(MAX_BLOCKS_PER_MULTIPROCESSOR)
}

pub(super) extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: Out<i32>,
    _handle: Handle,
    block: i32,
    shared: usize,
) -> u32 {
    out.write(active_blocks(block, shared))
}

pub(super) extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: Out<i32>,
    _handle: Handle,
    block: i32,
    shared: usize,
    _flags: u32,
) -> u32 {
    out.write(active_blocks(block, shared))
}

pub(super) extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<i32>,
    block: Out<i32>,
    _handle: Handle,
    _shared_of: *const c_void,
    _shared: usize,
    limit: i32,
) -> u32 {
    let max_size = MAX_THREADS_PER_BLOCK as i32;
    let size = if limit > 0 { limit.min(max_size) } else { max_size };
    grid.write(MULTIPROCESSORS * active_blocks(size, 0)) | block.write(size)
}

pub(super) extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_of: *const c_void,
    shared: usize,
    limit: i32,
    _flags: u32,
) -> u32 {
    cuOccupancyMaxPotentialBlockSize(grid, block, handle, shared_of, shared, limit)
}

pub(super) extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    out: Out<usize>,
    _handle: Handle,
    blocks: i32,
    _block: i32,
) -> u32 {
    let max_bytes = max_dynamic_shared_bytes(gpu().compute_capability());
    let per_block = SHARED_BYTES_PER_MULTIPROCESSOR / blocks.max(1) as usize;
    out.write(per_block.saturating_sub(RESERVED_SHARED_BYTES_PER_BLOCK).min(max_bytes))
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
