//! The part of libcublasLt that a trainer needs: descriptors, a heuristic that knows one algorithm, and the
//! matrix product. Unsafe: C calls it. A matrix product is a launch of a kernel named `matmul`. Must not know
//! rules.
//!
//! Numbers are those of cublasLt.h, cublas_api.h and library_types.h.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};

use crate::driver::launch::enqueue_launch;
use crate::driver::operations::StreamWork;
use crate::faults::{fault_state, take_pending_corruptions};
use crate::hooks::matmul_error_code;
use crate::matmul::{ElementType, MatmulTask, Operand};

/// `cublasStatus_t`.
const SUCCESS: u32 = 0;
const ALLOC_FAILED: u32 = 3;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

/// `cudaDataType`.
const CUDA_R_32F: u64 = 0;
const CUDA_R_16BF: u64 = 14;

/// `cublasComputeType_t`.
const COMPUTE_32F: u64 = 68;
const COMPUTE_32F_PEDANTIC: u64 = 69;
const COMPUTE_32F_FAST_16BF: u64 = 75;
const COMPUTE_32F_FAST_TF32: u64 = 77;

/// These are computed in the same way.
const COMPUTE_TYPES: [u64; 4] =
    [COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_32F_FAST_16BF, COMPUTE_32F_FAST_TF32];

/// The version of the cublasLt that came with CUDA 12.8.
const VERSION: usize = 120_803;
/// A handle has no state, so any value that is not null will do.
const LT_HANDLE: usize = 0x10;

/// `cublasLtMatmulDescAttributes_t`.
const MATMUL_COMPUTE_TYPE: u32 = 0;
const MATMUL_SCALE_TYPE: u32 = 1;
const MATMUL_POINTER_MODE: u32 = 2;
const MATMUL_TRANSA: u32 = 3;
const MATMUL_TRANSB: u32 = 4;
const MATMUL_TRANSC: u32 = 5;
const MATMUL_EPILOGUE: u32 = 7;

/// `CUBLASLT_POINTER_MODE_HOST`.
const POINTER_MODE_HOST: u32 = 0;
/// `CUBLASLT_EPILOGUE_DEFAULT`: none.
const EPILOGUE_DEFAULT: u32 = 1;

/// `cublasOperation_t`.
const OP_N: u32 = 0;
const OP_T: u32 = 1;
const OP_C: u32 = 2;

/// `cublasLtMatrixLayoutAttribute_t`.
const LAYOUT_TYPE: u32 = 0;
const LAYOUT_ORDER: u32 = 1;
const LAYOUT_ROWS: u32 = 2;
const LAYOUT_COLS: u32 = 3;
const LAYOUT_LD: u32 = 4;
const LAYOUT_BATCH_COUNT: u32 = 5;
const LAYOUT_STRIDED_BATCH_OFFSET: u32 = 6;

/// `cublasLtOrder_t`.
const ORDER_COL: u32 = 0;
const ORDER_ROW: u32 = 1;

/// What a descriptor describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DescriptorKind {
    MatmulDesc,
    MatrixLayout,
    Preference,
}

/// A descriptor, with its attributes by NVIDIA's numbers.
struct Descriptor {
    kind: DescriptorKind,
    attributes: HashMap<u32, u64>,
}

impl Descriptor {
    /// Returns the value of an attribute. Default: 0.
    fn attribute(&self, attribute: u32) -> u64 {
        self.attributes.get(&attribute).copied().unwrap_or(0)
    }
}

type DescriptorPtr = *mut Descriptor;

/// # Safety
/// `out` is null or valid for a write.
unsafe fn create_descriptor(out: *mut DescriptorPtr, kind: DescriptorKind, attributes: &[(u32, u64)]) -> u32 {
    if out.is_null() {
        return INVALID_VALUE;
    }
    let descriptor = Box::new(Descriptor { kind, attributes: attributes.iter().copied().collect() });
    // SAFETY: `out` is not null, so the caller promises that it is valid for a write.
    unsafe { out.write(Box::into_raw(descriptor)) };
    SUCCESS
}

/// # Safety
/// `descriptor` is null, or was created here and not destroyed yet.
unsafe fn destroy_descriptor(descriptor: DescriptorPtr) -> u32 {
    if !descriptor.is_null() {
        // SAFETY: `create_descriptor` made the pointer from a box, and the caller promises that it was not
        // destroyed.
        drop(unsafe { Box::from_raw(descriptor) });
    }
    SUCCESS
}

/// # Safety
/// `descriptor` is null, or was created here and not destroyed. `value` is null or has `len_bytes` readable
/// bytes.
unsafe fn set_attribute(
    descriptor: DescriptorPtr,
    attribute: u32,
    value: *const c_void,
    len_bytes: usize,
) -> u32 {
    if descriptor.is_null() || value.is_null() || !(1..=8).contains(&len_bytes) {
        return INVALID_VALUE;
    }
    let mut bits = 0_u64;
    // SAFETY: neither pointer is null, so the caller's promises hold; a u64 holds the at most 8 bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(value.cast::<u8>(), (&raw mut bits).cast(), len_bytes);
        (*descriptor).attributes.insert(attribute, bits);
    }
    SUCCESS
}

/// # Safety
/// `descriptor` is null, or was created here and not destroyed. `value` is null or has `len_bytes` writable
/// bytes. `written` is null or valid for a write.
unsafe fn get_attribute(
    descriptor: DescriptorPtr,
    attribute: u32,
    value: *mut c_void,
    len_bytes: usize,
    written: *mut usize,
) -> u32 {
    if descriptor.is_null() || value.is_null() || !(1..=8).contains(&len_bytes) {
        return INVALID_VALUE;
    }
    // SAFETY: `descriptor` and `value` are not null, so the caller's promises hold; a u64 has the at most 8
    // bytes.
    unsafe {
        let bits = (*descriptor).attribute(attribute);
        std::ptr::copy_nonoverlapping((&raw const bits).cast::<u8>(), value.cast(), len_bytes);
        if !written.is_null() {
            written.write(len_bytes);
        }
    }
    SUCCESS
}

macro_rules! descriptors {
    ($($destroy:ident $set:ident $get:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $destroy(descriptor: DescriptorPtr) -> u32 {
            // SAFETY: cublasLt requires a descriptor that was created and not destroyed.
            unsafe { destroy_descriptor(descriptor) }
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $set(
            descriptor: DescriptorPtr,
            attribute: u32,
            value: *const c_void,
            len_bytes: usize,
        ) -> u32 {
            // SAFETY: cublasLt requires a live descriptor and a buffer of `len_bytes`.
            unsafe { set_attribute(descriptor, attribute, value, len_bytes) }
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $get(
            descriptor: DescriptorPtr,
            attribute: u32,
            value: *mut c_void,
            len_bytes: usize,
            written: *mut usize,
        ) -> u32 {
            // SAFETY: cublasLt requires a live descriptor, a buffer of `len_bytes`, and a valid or null
            // `written`.
            unsafe { get_attribute(descriptor, attribute, value, len_bytes, written) }
        }
    )*};
}

descriptors! {
    cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute cublasLtMatmulDescGetAttribute;
    cublasLtMatrixLayoutDestroy cublasLtMatrixLayoutSetAttribute cublasLtMatrixLayoutGetAttribute;
    cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute
        cublasLtMatmulPreferenceGetAttribute;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(out: *mut *mut c_void) -> u32 {
    if out.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: `out` is not null, and cublasLt requires it to be valid for a write.
    unsafe { out.write(std::ptr::without_provenance_mut(LT_HANDLE)) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(_handle: *mut c_void) -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
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
unsafe extern "C" fn cublasLtMatmulDescCreate(out: *mut DescriptorPtr, compute: u32, scale: u32) -> u32 {
    let attributes = [
        (MATMUL_COMPUTE_TYPE, u64::from(compute)),
        (MATMUL_SCALE_TYPE, u64::from(scale)),
        (MATMUL_EPILOGUE, u64::from(EPILOGUE_DEFAULT)),
    ];
    // SAFETY: cublasLt requires `out` to be valid for a write; null is checked.
    unsafe { create_descriptor(out, DescriptorKind::MatmulDesc, &attributes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    out: *mut DescriptorPtr,
    element: u32,
    rows: u64,
    columns: u64,
    leading_dimension: i64,
) -> u32 {
    let attributes = [
        (LAYOUT_TYPE, u64::from(element)),
        (LAYOUT_ORDER, u64::from(ORDER_COL)),
        (LAYOUT_ROWS, rows),
        (LAYOUT_COLS, columns),
        (LAYOUT_LD, leading_dimension as u64),
        (LAYOUT_BATCH_COUNT, 1),
        (LAYOUT_STRIDED_BATCH_OFFSET, 0),
    ];
    // SAFETY: cublasLt requires `out` to be valid for a write; null is checked.
    unsafe { create_descriptor(out, DescriptorKind::MatrixLayout, &attributes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(out: *mut DescriptorPtr) -> u32 {
    // SAFETY: cublasLt requires `out` to be valid for a write; null is checked.
    unsafe { create_descriptor(out, DescriptorKind::Preference, &[]) }
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
    description: DescriptorPtr,
    a: DescriptorPtr,
    b: DescriptorPtr,
    c: DescriptorPtr,
    d: DescriptorPtr,
    _preference: DescriptorPtr,
    requested: i32,
    results: *mut HeuristicResult,
    returned: *mut i32,
) -> u32 {
    if requested < 1 || results.is_null() || returned.is_null() {
        return INVALID_VALUE;
    }
    let addresses = [0; 4];
    // SAFETY: cublasLt requires live descriptors, and room for at least one result and for the count.
    unsafe {
        returned.write(0);
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
        returned.write(1);
    }
    SUCCESS
}

/// Reads a matrix layout. Rows and columns are those in memory.
fn operand_of(layout: &Descriptor, address: usize) -> Result<Operand, u32> {
    let element = match layout.attribute(LAYOUT_TYPE) {
        CUDA_R_32F => ElementType::F32,
        CUDA_R_16BF => ElementType::Bf16,
        _ => return Err(NOT_SUPPORTED),
    };
    let (rows, columns) = (layout.attribute(LAYOUT_ROWS) as usize, layout.attribute(LAYOUT_COLS) as usize);
    let leading_dimension = layout.attribute(LAYOUT_LD) as usize;
    let (row_stride, column_stride, min_leading_dimension) = match layout.attribute(LAYOUT_ORDER) as u32 {
        ORDER_COL => (1, leading_dimension, rows),
        ORDER_ROW => (leading_dimension, 1, columns),
        _ => return Err(NOT_SUPPORTED),
    };
    let batch_stride = layout.attribute(LAYOUT_STRIDED_BATCH_OFFSET);
    if leading_dimension < min_leading_dimension || rows == 0 || columns == 0 || (batch_stride as i64) < 0 {
        return Err(INVALID_VALUE);
    }
    let batch_stride = batch_stride as usize;
    Ok(Operand { address, element, rows, columns, row_stride, column_stride, batch_stride })
}

/// Applies an operation of `cublasOperation_t` to an operand.
fn apply_transposition(operand: Operand, operation: u64) -> Result<Operand, u32> {
    match operation as u32 {
        OP_N => Ok(operand),
        // Transposed or conjugate transposed, which are the same for real numbers.
        OP_T | OP_C => Ok(Operand {
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
/// All descriptors are null, or were created here and not destroyed.
unsafe fn read_matmul(
    description: DescriptorPtr,
    layouts: [DescriptorPtr; 4],
    addresses: [usize; 4],
    alpha: f32,
    beta: f32,
) -> Result<MatmulTask, u32> {
    // SAFETY: a descriptor that is not null was created here and not destroyed, as this function requires.
    let description = unsafe { description.as_ref() }
        .filter(|it| it.kind == DescriptorKind::MatmulDesc)
        .ok_or(INVALID_VALUE)?;
    let mut operands = Vec::with_capacity(4);
    let mut batches = Vec::with_capacity(4);
    for (layout, address) in layouts.into_iter().zip(addresses) {
        // SAFETY: a descriptor that is not null was created here and not destroyed, as this function requires.
        let layout = unsafe { layout.as_ref() }
            .filter(|it| it.kind == DescriptorKind::MatrixLayout)
            .ok_or(INVALID_VALUE)?;
        operands.push(operand_of(layout, address)?);
        batches.push(layout.attribute(LAYOUT_BATCH_COUNT) as u32 as usize);
    }
    let has_plain_options = description.attribute(MATMUL_EPILOGUE) as u32 == EPILOGUE_DEFAULT
        && description.attribute(MATMUL_POINTER_MODE) as u32 == POINTER_MODE_HOST
        && description.attribute(MATMUL_TRANSC) as u32 == OP_N;
    if !COMPUTE_TYPES.contains(&description.attribute(MATMUL_COMPUTE_TYPE))
        || description.attribute(MATMUL_SCALE_TYPE) != CUDA_R_32F
        || !has_plain_options
    {
        return Err(NOT_SUPPORTED);
    }
    let [a, b, c, d] = [operands[0], operands[1], operands[2], operands[3]];
    let (a, b) = (
        apply_transposition(a, description.attribute(MATMUL_TRANSA))?,
        apply_transposition(b, description.attribute(MATMUL_TRANSB))?,
    );
    let shapes_fit = a.columns == b.rows && a.rows == d.rows && b.columns == d.columns;
    let shapes_agree =
        c.rows == d.rows && c.columns == d.columns && batches.iter().all(|count| *count == batches[0]);
    if !shapes_fit || !shapes_agree || batches[0] == 0 {
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
    description: DescriptorPtr,
    alpha: *const f32,
    a: usize,
    a_layout: DescriptorPtr,
    b: usize,
    b_layout: DescriptorPtr,
    beta: *const f32,
    c: usize,
    c_layout: DescriptorPtr,
    d: usize,
    d_layout: DescriptorPtr,
    _algorithm: *const c_void,
    _workspace: *mut c_void,
    _workspace_bytes: usize,
    stream: u64,
) -> u32 {
    if alpha.is_null() || beta.is_null() {
        return INVALID_VALUE;
    }
    match matmul_error_code(fault_state()) {
        Some(crate::codes::OUT_OF_MEMORY) => return ALLOC_FAILED,
        Some(_) => return EXECUTION_FAILED,
        None => (),
    }
    let corruptions = take_pending_corruptions();
    let layouts = [a_layout, b_layout, c_layout, d_layout];
    // SAFETY: cublasLt requires live descriptors and, in host pointer mode, readable scalars; null is
    // checked.
    let matmul = unsafe { read_matmul(description, layouts, [a, b, c, d], alpha.read(), beta.read()) };
    match matmul {
        Ok(matmul) => match enqueue_launch(stream, StreamWork::Matmul(Box::new(matmul)), corruptions) {
            Ok(()) => SUCCESS,
            Err(_) => EXECUTION_FAILED,
        },
        Err(status) => status,
    }
}
