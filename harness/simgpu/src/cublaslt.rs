//! The part of libcublasLt that a trainer needs: descriptors, a heuristic that knows one algorithm, and the multiplication.
//! Unsafe: C calls it. A multiplication is a launch of a kernel named `matmul`.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};

use crate::driver::launch::enqueue_launch;
use crate::driver::work::StreamWork;
use crate::hooks::{matmul_error_code, take_corruptions};
use crate::matmul::{ElementType, MatmulTask, Operand};

const SUCCESS: u32 = 0;
const ALLOC_FAILED: u32 = 3;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

/// CUDA_R_32F and CUDA_R_16BF.
const CUDA_R_32F: u64 = 0;
const CUDA_R_16BF: u64 = 14;
/// CUBLAS_COMPUTE_32F and its faster kinds, which are taken for it.
const COMPUTE_TYPES: [u64; 4] = [68, 69, 75, 77];

/// What a descriptor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DescriptorKind {
    MatmulDesc,
    MatrixLayout,
    Preference,
}

/// A descriptor: its attributes, by NVIDIA's numbers.
struct Descriptor {
    kind: DescriptorKind,
    attributes: HashMap<u32, u64>,
}

impl Descriptor {
    fn attribute(&self, attribute: u32) -> u64 {
        self.attributes.get(&attribute).copied().unwrap_or(0)
    }
}

type Handle = *mut Descriptor;

/// # Safety
/// `place` is null or a place for the answer.
unsafe fn create_descriptor(place: *mut Handle, of: DescriptorKind, values: &[(u32, u64)]) -> u32 {
    if place.is_null() {
        return INVALID_VALUE;
    }
    let described = Box::new(Descriptor { kind: of, attributes: values.iter().copied().collect() });
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
        (*handle).attributes.insert(attribute, wide);
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
        let wide = (*handle).attribute(attribute);
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
    unsafe { create_descriptor(place, DescriptorKind::MatmulDesc, &values) }
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
    unsafe { create_descriptor(place, DescriptorKind::MatrixLayout, &values) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(place: *mut Handle) -> u32 {
    // SAFETY: as above.
    unsafe { create_descriptor(place, DescriptorKind::Preference, &[]) }
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct HeuristicResult {
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
    results: *mut HeuristicResult,
    found: *mut i32,
) -> u32 {
    if asked < 1 || results.is_null() || found.is_null() {
        return INVALID_VALUE;
    }
    let addresses = [0; 4];
    // SAFETY: as above.
    unsafe {
        found.write(0);
        if let Err(status) = read_matmul(description, [a, b, c, d], addresses, 1.0, 0.0) {
            return status;
        }
        let state = SUCCESS;
        results.write(HeuristicResult {
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
fn operand_of(layout: &Descriptor, at: usize) -> Result<Operand, u32> {
    let element = match layout.attribute(0) {
        CUDA_R_32F => ElementType::F32,
        CUDA_R_16BF => ElementType::Bf16,
        _ => return Err(NOT_SUPPORTED),
    };
    let (rows, columns, ld) =
        (layout.attribute(2) as usize, layout.attribute(3) as usize, layout.attribute(4) as usize);
    let (down, along, least) = match layout.attribute(1) as u32 {
        0 => (1, ld, rows),
        1 => (ld, 1, columns),
        _ => return Err(NOT_SUPPORTED),
    };
    if ld < least || rows == 0 || columns == 0 || (layout.attribute(6) as i64) < 0 {
        return Err(INVALID_VALUE);
    }
    Ok(Operand {
        address: at,
        element,
        rows,
        columns,
        row_stride: down,
        column_stride: along,
        batch_stride: layout.attribute(6) as usize,
    })
}

/// As the product sees it.
fn apply_transposition(operand: Operand, operation: u64) -> Result<Operand, u32> {
    match operation as u32 {
        0 => Ok(operand),
        // CUBLAS_OP_T, and CUBLAS_OP_C: the same for real numbers.
        1 | 2 => Ok(Operand {
            rows: operand.columns,
            columns: operand.rows,
            row_stride: operand.column_stride,
            column_stride: operand.row_stride,
            ..operand
        }),
        _ => Err(INVALID_VALUE),
    }
}

/// # Safety
/// All are null or descriptors that were created and not destroyed.
unsafe fn read_matmul(
    description: Handle,
    layouts: [Handle; 4],
    at: [usize; 4],
    alpha: f32,
    beta: f32,
) -> Result<MatmulTask, u32> {
    // SAFETY: the caller's.
    let description = unsafe { description.as_ref() }
        .filter(|it| it.kind == DescriptorKind::MatmulDesc)
        .ok_or(INVALID_VALUE)?;
    let mut operands = Vec::with_capacity(4);
    let mut batches = Vec::with_capacity(4);
    for (layout, at) in layouts.into_iter().zip(at) {
        // SAFETY: the caller's.
        let layout = unsafe { layout.as_ref() }
            .filter(|it| it.kind == DescriptorKind::MatrixLayout)
            .ok_or(INVALID_VALUE)?;
        operands.push(operand_of(layout, at)?);
        batches.push(layout.attribute(5) as u32 as usize);
    }
    let plain = description.attribute(7) as u32 == 1
        && description.attribute(2) as u32 == 0
        && description.attribute(5) as u32 == 0;
    if !COMPUTE_TYPES.contains(&description.attribute(0)) || description.attribute(1) != CUDA_R_32F || !plain
    {
        return Err(NOT_SUPPORTED);
    }
    let [a, b, c, d] = [operands[0], operands[1], operands[2], operands[3]];
    let (a, b) = (
        apply_transposition(a, description.attribute(3))?,
        apply_transposition(b, description.attribute(4))?,
    );
    let fits = a.columns == b.rows && a.rows == d.rows && b.columns == d.columns;
    let alike =
        c.rows == d.rows && c.columns == d.columns && batches.iter().all(|count| *count == batches[0]);
    if !fits || !alike || batches[0] == 0 {
        return Err(INVALID_VALUE);
    }
    if a.element != b.element
        || c.element != d.element
        || (a.element == ElementType::F32 && d.element == ElementType::Bf16)
    {
        return Err(NOT_SUPPORTED);
    }
    Ok(MatmulTask { a, b, c, d, alpha, beta, batch_count: batches[0] })
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
    match matmul_error_code() {
        Some(crate::codes::OUT_OF_MEMORY) => return ALLOC_FAILED,
        Some(_) => return EXECUTION_FAILED,
        None => (),
    }
    let twists = take_corruptions();
    // SAFETY: the caller's.
    let matmul = unsafe {
        read_matmul(
            description,
            [a_layout, b_layout, c_layout, d_layout],
            [a, b, c, d],
            alpha.read(),
            beta.read(),
        )
    };
    match matmul {
        Ok(matmul) => match enqueue_launch(stream, StreamWork::Matmul(Box::new(matmul)), twists) {
            Ok(()) => SUCCESS,
            Err(_) => EXECUTION_FAILED,
        },
        Err(status) => status,
    }
}
