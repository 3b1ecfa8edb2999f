//! The functions of cublasLt and the types that own its handles. The public interface is safe.
//! Knows no model.
//!
//! Statuses are integers: an unknown value in a Rust enum would be undefined behaviour.

#![expect(clippy::too_many_arguments, reason = "cublasLt's own arguments")]

use std::ffi::c_void;
use std::sync::OnceLock;

use cudarc::cublaslt::sys as lt;

use super::gemm_scales::GemmScales;
use crate::device::cuda::memory::{BufferView, ElementType};
use crate::device::cuda::sys::CudaStream;

/// `CUBLAS_STATUS_NOT_INITIALIZED`. Also used for a missing library or function.
const STATUS_NOT_INITIALIZED: u32 = 1;
/// `CUBLAS_STATUS_NOT_SUPPORTED`.
pub(super) const STATUS_NOT_SUPPORTED: u32 = 15;

const COMPUTE_32F: u32 = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F as u32;
const R_32F: u32 = lt::cudaDataType_t::CUDA_R_32F as u32;
const R_16BF: u32 = lt::cudaDataType_t::CUDA_R_16BF as u32;
const TRANS_A: u32 = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA as u32;
const TRANS_B: u32 = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB as u32;
const PREF_MAX_WORKSPACE_BYTES: u32 =
    lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32;
/// The next three attributes are those of b, c and d.
const PREF_MIN_ALIGNMENT_A_BYTES: u32 =
    lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as u32;

macro_rules! cublas {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[expect(non_snake_case, reason = "cublasLt's own name")]
        unsafe fn $name($($arg: $kind),*) -> u32 {
            type CublasLtFunction = unsafe extern "C" fn($($kind),*) -> u32;
            static FUNCTION: OnceLock<Option<CublasLtFunction>> = OnceLock::new();
            let function = FUNCTION.get_or_init(|| {
                // SAFETY: `CublasLtHandle::new` comes first and has checked that the library is present.
                let library = unsafe { lt::culib() };
                // SAFETY: the type is the one in `cublasLt.h`, where enums are ints and handles are pointers.
                let symbol = unsafe { library.get::<CublasLtFunction>(stringify!($name).as_bytes()) };
                symbol.ok().map(|symbol| *symbol)
            });
            match function {
                // SAFETY: the arguments are passed on unchanged, and the caller guarantees that they are
                // valid for this function.
                Some(function) => unsafe { function($($arg),*) },
                None => STATUS_NOT_INITIALIZED,
            }
        }
    )*};
}

cublas! {
    cublasLtCreate(handle: *mut usize);
    cublasLtDestroy(handle: usize);
    cublasLtMatmulDescCreate(desc: *mut usize, compute: u32, scale: u32);
    cublasLtMatmulDescDestroy(desc: usize);
    cublasLtMatmulDescSetAttribute(desc: usize, attribute: u32, value: *const c_void, bytes: usize);
    cublasLtMatrixLayoutCreate(layout: *mut usize, element: u32, rows: u64, cols: u64, ld: i64);
    cublasLtMatrixLayoutDestroy(layout: usize);
    cublasLtMatmulPreferenceCreate(preference: *mut usize);
    cublasLtMatmulPreferenceDestroy(preference: usize);
    cublasLtMatmulPreferenceSetAttribute(
        preference: usize, attribute: u32, value: *const c_void, bytes: usize
    );
    cublasLtMatmulAlgoGetHeuristic(
        handle: usize, desc: usize, a: usize, b: usize, c: usize, d: usize, preference: usize, requested: i32,
        results: *mut MatmulHeuristicResult, found: *mut i32
    );
    cublasLtMatmul(
        handle: usize, desc: usize, alpha: *const c_void, a: u64, a_layout: usize, b: u64, b_layout: usize,
        beta: *const c_void, c: u64, c_layout: usize, d: u64, d_layout: usize, algorithm: *const Algorithm,
        workspace: u64, workspace_bytes: usize, stream: usize
    );
}

/// `cublasLtMatmulAlgo_t`.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct MatmulHeuristicResult {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

/// The function that failed, and its status.
#[derive(Debug, Clone, Copy)]
pub(super) struct CublasLtFailure {
    pub(super) call: &'static str,
    pub(super) status: u32,
}

/// Turns a status into a result.
fn check(call: &'static str, status: u32) -> Result<(), CublasLtFailure> {
    if status == 0 { Ok(()) } else { Err(CublasLtFailure { call, status }) }
}

/// A handle and the function that destroys it.
#[derive(Debug)]
struct Descriptor {
    handle: usize,
    destroy: unsafe fn(usize) -> u32,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the handle was created by the counterpart of `destroy` and is destroyed exactly once.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// A cublasLt handle for the context of the calling thread.
#[derive(Debug)]
pub(super) struct CublasLtHandle(Descriptor);

impl CublasLtHandle {
    pub(super) fn new() -> Result<CublasLtHandle, CublasLtFailure> {
        // SAFETY: loads libcublasLt by its public names; its initialisers have no preconditions.
        if !unsafe { lt::is_culib_present() } {
            return Err(CublasLtFailure { call: "loading libcublasLt", status: STATUS_NOT_INITIALIZED });
        }
        let mut handle = 0;
        // SAFETY: the out-pointer is valid for the duration of the call.
        check("cublasLtCreate", unsafe { cublasLtCreate(&raw mut handle) })?;
        Ok(CublasLtHandle(Descriptor { handle, destroy: cublasLtDestroy }))
    }
}

/// Layout of a matrix in cublasLt's terms: column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MatrixLayout {
    pub(super) element: ElementType,
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) ld: i64,
    /// Alignment of its address, at most 256.
    pub(super) alignment_bytes: u32,
}

impl MatrixLayout {
    fn create(&self) -> Result<Descriptor, CublasLtFailure> {
        let element = if self.element == ElementType::Bf16 { R_16BF } else { R_32F };
        let mut handle = 0;
        // SAFETY: the out-pointer is valid for the duration of the call.
        let status =
            unsafe { cublasLtMatrixLayoutCreate(&raw mut handle, element, self.rows, self.cols, self.ld) };
        check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Descriptor { handle, destroy: cublasLtMatrixLayoutDestroy })
    }
}

/// Everything that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MatmulShape {
    /// Whether a and b are transposed.
    pub(super) transposed: [bool; 2],
    /// Layouts of a, b, c and d.
    pub(super) layouts: [MatrixLayout; 4],
}

/// The algorithm that cublasLt chose for a shape, with its descriptors.
#[derive(Debug)]
pub(super) struct MatmulPlan {
    desc: Descriptor,
    layouts: [Descriptor; 4],
    algorithm: Algorithm,
    pub(super) workspace_bytes: usize,
}

impl MatmulPlan {
    /// Asks cublasLt for the best algorithm with at most `max_workspace_bytes` of workspace.
    pub(super) fn new(
        handle: &CublasLtHandle,
        shape: &MatmulShape,
        max_workspace_bytes: usize,
    ) -> Result<MatmulPlan, CublasLtFailure> {
        let desc = create_desc(shape.transposed)?;
        let [a, b, c, d] = shape.layouts.each_ref().map(MatrixLayout::create);
        let layouts = [a?, b?, c?, d?];
        let preference = create_preference(shape, max_workspace_bytes)?;
        let mut found = 0;
        let mut best = MatmulHeuristicResult {
            algorithm: [0; 8],
            workspace_bytes: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let [a, b, c, d] = layouts.each_ref().map(|layout| layout.handle);
        // SAFETY: all handles are alive, and `best` has room for the one result that is requested.
        let status = unsafe {
            cublasLtMatmulAlgoGetHeuristic(
                handle.0.handle,
                desc.handle,
                a,
                b,
                c,
                d,
                preference.handle,
                1,
                &raw mut best,
                &raw mut found,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        if found < 1 {
            check("cublasLtMatmulAlgoGetHeuristic", STATUS_NOT_SUPPORTED)?;
        }
        check("cublasLtMatmulAlgoGetHeuristic", best.state)?;
        Ok(MatmulPlan { desc, layouts, algorithm: best.algorithm, workspace_bytes: best.workspace_bytes })
    }

    /// Queues `d = alpha a b + beta c`. The views must have the shape that was planned; `CublasLt` ensures
    /// it.
    pub(super) fn run(
        &self,
        handle: &CublasLtHandle,
        stream: &CudaStream,
        [a, b, c, d]: [BufferView<'_>; 4],
        scales: GemmScales,
        workspace: Option<BufferView<'_>>,
    ) -> Result<(), CublasLtFailure> {
        let [a_layout, b_layout, c_layout, d_layout] = self.layouts.each_ref().map(|layout| layout.handle);
        let (workspace_address, workspace_bytes) =
            workspace.map_or((0, 0), |view| (view.address, view.len * view.element.size_bytes()));
        // SAFETY: all handles are alive. `scales` is alive and is read before the call returns.
        // The call touches device memory only.
        let status = unsafe {
            cublasLtMatmul(
                handle.0.handle,
                self.desc.handle,
                (&raw const scales.alpha).cast(),
                a.address,
                a_layout,
                b.address,
                b_layout,
                (&raw const scales.beta).cast(),
                c.address,
                c_layout,
                d.address,
                d_layout,
                &raw const self.algorithm,
                workspace_address,
                workspace_bytes,
                stream.handle(),
            )
        };
        check("cublasLtMatmul", status)
    }
}

/// Creates the descriptor of an f32 product.
fn create_desc(transposed: [bool; 2]) -> Result<Descriptor, CublasLtFailure> {
    let mut handle = 0;
    // SAFETY: the out-pointer is valid for the duration of the call.
    let status = unsafe { cublasLtMatmulDescCreate(&raw mut handle, COMPUTE_32F, R_32F) };
    check("cublasLtMatmulDescCreate", status)?;
    let desc = Descriptor { handle, destroy: cublasLtMatmulDescDestroy };
    for (attribute, transposed) in [TRANS_A, TRANS_B].into_iter().zip(transposed) {
        let operation = u32::from(transposed);
        // SAFETY: the attribute is an int of 4 bytes, and the pointer is valid for them.
        let status =
            unsafe { cublasLtMatmulDescSetAttribute(handle, attribute, (&raw const operation).cast(), 4) };
        check("cublasLtMatmulDescSetAttribute", status)?;
    }
    Ok(desc)
}

/// Creates the limits of the search for an algorithm: workspace size and alignments.
fn create_preference(shape: &MatmulShape, max_workspace_bytes: usize) -> Result<Descriptor, CublasLtFailure> {
    let mut handle = 0;
    // SAFETY: the out-pointer is valid for the duration of the call.
    let status = unsafe { cublasLtMatmulPreferenceCreate(&raw mut handle) };
    check("cublasLtMatmulPreferenceCreate", status)?;
    let preference = Descriptor { handle, destroy: cublasLtMatmulPreferenceDestroy };
    const CALL: &str = "cublasLtMatmulPreferenceSetAttribute";
    let bytes = max_workspace_bytes as u64;
    // SAFETY: the attribute is a size of 8 bytes, and the pointer is valid for them.
    let status = unsafe {
        cublasLtMatmulPreferenceSetAttribute(handle, PREF_MAX_WORKSPACE_BYTES, (&raw const bytes).cast(), 8)
    };
    check(CALL, status)?;
    for (attribute, layout) in (PREF_MIN_ALIGNMENT_A_BYTES..).zip(&shape.layouts) {
        let alignment = &raw const layout.alignment_bytes;
        // SAFETY: the attribute is an int of 4 bytes, and the pointer is valid for them.
        check(CALL, unsafe { cublasLtMatmulPreferenceSetAttribute(handle, attribute, alignment.cast(), 4) })?;
    }
    Ok(preference)
}
