//! The part of libcublasLt that a trainer needs: descriptors, a heuristic that knows one algorithm, and the multiplication.
//! Unsafe: C calls it. A multiplication is a launch of a kernel named `matmul`.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};

use crate::driver::launch::give_out_launch;
use crate::driver::work::Work;
use crate::hooks::{matmul_fails, taken_twists};
use crate::matmul::{Element, Matmul, Operand};

const SUCCESS: u32 = 0;
const ALLOC_FAILED: u32 = 3;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

/// CUDA_R_32F and CUDA_R_16BF.
const F32: u64 = 0;
const BF16: u64 = 14;
/// CUBLAS_COMPUTE_32F and its faster kinds, which are taken for it.
const COMPUTE: [u64; 4] = [68, 69, 75, 77];

/// What a descriptor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Multiplication,
    Layout,
    Preference,
}

/// A descriptor: its attributes, by NVIDIA's numbers.
struct Described {
    of: Of,
    values: HashMap<u32, u64>,
}

impl Described {
    fn get(&self, attribute: u32) -> u64 {
        self.values.get(&attribute).copied().unwrap_or(0)
    }
}

type Handle = *mut Described;

/// # Safety
/// `place` is null or a place for the answer.
unsafe fn create(place: *mut Handle, of: Of, values: &[(u32, u64)]) -> u32 {
    if place.is_null() {
        return INVALID_VALUE;
    }
    let described = Box::new(Described { of, values: values.iter().copied().collect() });
    // SAFETY: the caller's.
    unsafe { place.write(Box::into_raw(described)) };
    SUCCESS
}

/// # Safety
/// `handle` is null or was created and not destroyed.
unsafe fn destroy(handle: Handle) -> u32 {
    if !handle.is_null() {
        // SAFETY: the caller's.
        drop(unsafe { Box::from_raw(handle) });
    }
    SUCCESS
}

/// # Safety
/// As of [`destroy`]; `value` has `bytes` bytes.
unsafe fn set(handle: Handle, attribute: u32, value: *const c_void, bytes: usize) -> u32 {
    if handle.is_null() || value.is_null() || !(1..=8).contains(&bytes) {
        return INVALID_VALUE;
    }
    let mut wide = 0_u64;
    // SAFETY: the caller's, and a u64 has room for 8 bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(value.cast::<u8>(), (&raw mut wide).cast(), bytes);
        (*handle).values.insert(attribute, wide);
    }
    SUCCESS
}

/// # Safety
/// As of [`set`]; `written` is null or a place for the answer.
unsafe fn get(handle: Handle, attribute: u32, value: *mut c_void, bytes: usize, written: *mut usize) -> u32 {
    if handle.is_null() || value.is_null() || !(1..=8).contains(&bytes) {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's.
    unsafe {
        let wide = (*handle).get(attribute);
        std::ptr::copy_nonoverlapping((&raw const wide).cast::<u8>(), value.cast(), bytes);
        if !written.is_null() {
            written.write(bytes);
        }
    }
    SUCCESS
}

macro_rules! descriptors {
    ($($of:ident $destroy:ident $set:ident $get:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $destroy(handle: Handle) -> u32 {
            // SAFETY: the caller's arguments go on as they are, here and below.
            unsafe { destroy(handle) }
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $set(handle: Handle, attribute: u32, value: *const c_void, bytes: usize) -> u32 {
            // SAFETY: as above.
            unsafe { set(handle, attribute, value, bytes) }
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $get(handle: Handle, attribute: u32, value: *mut c_void, bytes: usize, written: *mut usize) -> u32 {
            // SAFETY: as above.
            unsafe { get(handle, attribute, value, bytes, written) }
        }
    )*};
}

descriptors! {
    Multiplication cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute cublasLtMatmulDescGetAttribute;
    Layout cublasLtMatrixLayoutDestroy cublasLtMatrixLayoutSetAttribute cublasLtMatrixLayoutGetAttribute;
    Preference cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute cublasLtMatmulPreferenceGetAttribute;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(place: *mut *mut c_void) -> u32 {
    if place.is_null() {
        return INVALID_VALUE;
    }
    // A handle has nothing to remember.
    // SAFETY: the caller's place.
    unsafe { place.write(std::ptr::without_provenance_mut(0x10)) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(_handle: *mut c_void) -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    120_803
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusName(status: u32) -> *const c_char {
    let name = match status {
        SUCCESS => c"CUBLAS_STATUS_SUCCESS",
        ALLOC_FAILED => c"CUBLAS_STATUS_ALLOC_FAILED",
        INVALID_VALUE => c"CUBLAS_STATUS_INVALID_VALUE",
        EXECUTION_FAILED => c"CUBLAS_STATUS_EXECUTION_FAILED",
        NOT_SUPPORTED => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"CUBLAS_STATUS_INTERNAL_ERROR",
    };
    name.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusString(status: u32) -> *const c_char {
    cublasLtGetStatusName(status)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(place: *mut Handle, compute: u32, scale: u32) -> u32 {
    let values = [(0, u64::from(compute)), (1, u64::from(scale)), (7, 1)];
    // SAFETY: the caller's arguments go on as they are, here and below.
    unsafe { create(place, Of::Multiplication, &values) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    place: *mut Handle,
    element: u32,
    rows: u64,
    columns: u64,
    ld: i64,
) -> u32 {
    let values = [(0, u64::from(element)), (1, 0), (2, rows), (3, columns), (4, ld as u64), (5, 1), (6, 0)];
    // SAFETY: as above.
    unsafe { create(place, Of::Layout, &values) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(place: *mut Handle) -> u32 {
    // SAFETY: as above.
    unsafe { create(place, Of::Preference, &[]) }
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: *mut c_void,
    description: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    d: Handle,
    _preference: Handle,
    asked: i32,
    results: *mut Heuristic,
    found: *mut i32,
) -> u32 {
    if asked < 1 || results.is_null() || found.is_null() {
        return INVALID_VALUE;
    }
    let addresses = [0; 4];
    // SAFETY: as above.
    unsafe {
        found.write(0);
        if let Err(status) = read(description, [a, b, c, d], addresses, 1.0, 0.0) {
            return status;
        }
        let state = SUCCESS;
        results.write(Heuristic {
            algorithm: [1; 8],
            workspace_bytes: 0,
            state,
            waves: 1.0,
            reserved: [0; 4],
        });
        found.write(1);
    }
    SUCCESS
}

/// Rows and columns as they lie in memory, and the steps down and along.
fn operand(layout: &Described, at: usize) -> Result<Operand, u32> {
    let element = match layout.get(0) {
        F32 => Element::F32,
        BF16 => Element::Bf16,
        _ => return Err(NOT_SUPPORTED),
    };
    let (rows, columns, ld) = (layout.get(2) as usize, layout.get(3) as usize, layout.get(4) as usize);
    let (down, along, least) = match layout.get(1) as u32 {
        0 => (1, ld, rows),
        1 => (ld, 1, columns),
        _ => return Err(NOT_SUPPORTED),
    };
    if ld < least || rows == 0 || columns == 0 || (layout.get(6) as i64) < 0 {
        return Err(INVALID_VALUE);
    }
    Ok(Operand { at, element, rows, columns, down, along, batch: layout.get(6) as usize })
}

/// As the product sees it.
fn transposed(operand: Operand, operation: u64) -> Result<Operand, u32> {
    match operation as u32 {
        0 => Ok(operand),
        // CUBLAS_OP_T, and CUBLAS_OP_C: the same for real numbers.
        1 | 2 => Ok(Operand {
            rows: operand.columns,
            columns: operand.rows,
            down: operand.along,
            along: operand.down,
            ..operand
        }),
        _ => Err(INVALID_VALUE),
    }
}

/// # Safety
/// All are null or descriptors that were created and not destroyed.
unsafe fn read(
    description: Handle,
    layouts: [Handle; 4],
    at: [usize; 4],
    alpha: f32,
    beta: f32,
) -> Result<Matmul, u32> {
    // SAFETY: the caller's.
    let description =
        unsafe { description.as_ref() }.filter(|it| it.of == Of::Multiplication).ok_or(INVALID_VALUE)?;
    let mut operands = Vec::with_capacity(4);
    let mut batches = Vec::with_capacity(4);
    for (layout, at) in layouts.into_iter().zip(at) {
        // SAFETY: the caller's.
        let layout = unsafe { layout.as_ref() }.filter(|it| it.of == Of::Layout).ok_or(INVALID_VALUE)?;
        operands.push(operand(layout, at)?);
        batches.push(layout.get(5) as u32 as usize);
    }
    let plain =
        description.get(7) as u32 == 1 && description.get(2) as u32 == 0 && description.get(5) as u32 == 0;
    if !COMPUTE.contains(&description.get(0)) || description.get(1) != F32 || !plain {
        return Err(NOT_SUPPORTED);
    }
    let [a, b, c, d] = [operands[0], operands[1], operands[2], operands[3]];
    let (a, b) = (transposed(a, description.get(3))?, transposed(b, description.get(4))?);
    let fits = a.columns == b.rows && a.rows == d.rows && b.columns == d.columns;
    let alike =
        c.rows == d.rows && c.columns == d.columns && batches.iter().all(|count| *count == batches[0]);
    if !fits || !alike || batches[0] == 0 {
        return Err(INVALID_VALUE);
    }
    if a.element != b.element
        || c.element != d.element
        || (a.element == Element::F32 && d.element == Element::Bf16)
    {
        return Err(NOT_SUPPORTED);
    }
    Ok(Matmul { a, b, c, d, alpha, beta, batches: batches[0] })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmul(
    _handle: *mut c_void,
    description: Handle,
    alpha: *const f32,
    a: usize,
    a_layout: Handle,
    b: usize,
    b_layout: Handle,
    beta: *const f32,
    c: usize,
    c_layout: Handle,
    d: usize,
    d_layout: Handle,
    _algorithm: *const c_void,
    _workspace: *mut c_void,
    _workspace_bytes: usize,
    stream: u64,
) -> u32 {
    if alpha.is_null() || beta.is_null() {
        return INVALID_VALUE;
    }
    match matmul_fails() {
        Some(crate::codes::OUT_OF_MEMORY) => return ALLOC_FAILED,
        Some(_) => return EXECUTION_FAILED,
        None => (),
    }
    let twists = taken_twists();
    // SAFETY: the caller's.
    let matmul = unsafe {
        read(description, [a_layout, b_layout, c_layout, d_layout], [a, b, c, d], alpha.read(), beta.read())
    };
    match matmul {
        Ok(matmul) => match give_out_launch(stream, Work::Multiply(Box::new(matmul)), twists) {
            Ok(()) => SUCCESS,
            Err(_) => EXECUTION_FAILED,
        },
        Err(status) => status,
    }
}
