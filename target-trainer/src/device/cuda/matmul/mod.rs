//! Matrix products with cublasLt. One plan is created and cached for each shape.
//!
//! Matrices are row-major here and column-major in cublasLt. A product of row-major matrices is therefore
//! computed as the product of their transposes in reverse order. Sums are in f32, never in TF32.

mod gemm_scales;
mod sys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::context::CudaContext;
use super::error::DeviceError;
use super::matrix_view::MatrixView;
use super::memory::{DeviceBuffer, ElementType, MemoryPool};
use super::sys::CudaStream;
use crate::locks::LockExt;
pub use gemm_scales::GemmScales;
use sys::{CublasLtFailure, CublasLtHandle, MatmulPlan, MatmulShape, MatrixLayout};

/// Workspace size that NVIDIA recommends for the H100 and later. Only as much as a plan needs is allocated.
const MAX_WORKSPACE_BYTES: usize = 32 << 20;
/// Bound of the plan cache: micro-batches of many different lengths would fill it without limit.
const MAX_PLANS: usize = 4096;

/// Whether a factor is used as stored or transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// Use the matrix as it is stored.
    AsStored,
    /// Use the transposed matrix.
    Transposed,
}

/// A factor of a matrix product.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    matrix: MatrixView<'a>,
    orientation: Orientation,
}

impl<'a> MatrixView<'a> {
    /// The matrix as a factor, as it is stored.
    pub fn as_stored(self) -> Factor<'a> {
        Factor { matrix: self, orientation: Orientation::AsStored }
    }

    /// The transposed matrix as a factor.
    pub fn transposed(self) -> Factor<'a> {
        Factor { matrix: self, orientation: Orientation::Transposed }
    }

    /// The layout for cublasLt: the transposed matrix, because cublasLt is column-major.
    fn layout(self) -> MatrixLayout {
        MatrixLayout {
            element: self.view.element,
            rows: self.cols as u64,
            cols: self.rows as u64,
            ld: self.ld as i64,
            alignment_bytes: 1 << self.view.address.trailing_zeros().min(8),
        }
    }
}

impl Factor<'_> {
    fn size(&self) -> FactorSize {
        let MatrixView { rows, cols, .. } = self.matrix;
        match self.orientation {
            Orientation::AsStored => FactorSize { rows, cols },
            Orientation::Transposed => FactorSize { rows: cols, cols: rows },
        }
    }
}

/// `d = alpha a b + beta c`.
pub(super) struct MatrixProduct<'a> {
    pub(super) d: MatrixView<'a>,
    pub(super) a: Factor<'a>,
    pub(super) b: Factor<'a>,
    pub(super) c: MatrixView<'a>,
    pub(super) scales: GemmScales,
}

impl MatrixProduct<'_> {
    /// Whether the result has no elements.
    fn is_empty(&self) -> bool {
        self.d.rows == 0 || self.d.cols == 0
    }

    /// Panics if the sizes do not match.
    fn check_sizes(&self) {
        let MatrixProduct { d, a, b, c, .. } = self;
        let (a, b) = (a.size(), b.size());
        assert!(
            a.cols == b.rows && [d, c].iter().all(|matrix| (matrix.rows, matrix.cols) == (a.rows, b.cols)),
            "{} x {} times {} x {} is not {} x {}",
            a.rows,
            a.cols,
            b.rows,
            b.cols,
            d.rows,
            d.cols
        );
        assert!(self.is_empty() || a.cols > 0, "the inner dimension of a product is 0");
    }

    /// The shape for cublasLt, which computes the transposed product, so the factors are swapped.
    fn shape(&self) -> MatmulShape {
        let MatrixProduct { d, a, b, c, .. } = self;
        MatmulShape {
            transposed: [b.orientation == Orientation::Transposed, a.orientation == Orientation::Transposed],
            layouts: [b.matrix.layout(), a.matrix.layout(), c.layout(), d.layout()],
        }
    }
}

/// Rows and columns of a factor, after the transposition.
struct FactorSize {
    rows: usize,
    cols: usize,
}

/// The cublasLt handle, the cached plans and their shared workspace.
#[derive(Debug)]
pub(super) struct CublasLt {
    handle: CublasLtHandle,
    context: Arc<CudaContext>,
    state: Mutex<CublasLtState>,
}

/// Plans and workspace.
#[derive(Debug)]
struct CublasLtState {
    plans: HashMap<MatmulShape, Arc<MatmulPlan>>,
    workspace: Option<Arc<DeviceBuffer>>,
    /// Reduced if the device could not allocate more.
    max_workspace_bytes: usize,
}

/// A plan and the workspace that it needs.
struct PreparedMatmul {
    plan: Arc<MatmulPlan>,
    workspace: Option<Arc<DeviceBuffer>>,
}

impl CublasLt {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CublasLt, DeviceError> {
        let handle = CublasLtHandle::new().map_err(|CublasLtFailure { call, status }| match status {
            1 => DeviceError::Unavailable {
                device: context.device_name.clone(),
                reason: format!("`{call}` failed: install cuBLAS (libcublasLt.so) of CUDA 12"),
                code: None,
            },
            _ => DeviceError::from_cublas(&context.device_name, call, status),
        })?;
        let state = CublasLtState {
            plans: HashMap::new(),
            workspace: None,
            max_workspace_bytes: MAX_WORKSPACE_BYTES,
        };
        Ok(CublasLt { handle, context: Arc::clone(context), state: Mutex::new(state) })
    }

    /// Returns the workspace to the memory pool.
    pub(super) fn release_workspace(&self) {
        self.state.locked().workspace = None;
    }

    /// Returns the cached plan of a shape, or creates it.
    fn plan(&self, shape: &MatmulShape) -> Result<Arc<MatmulPlan>, CublasLtFailure> {
        let mut state = self.state.locked();
        if let Some(plan) = state.plans.get(shape) {
            return Ok(Arc::clone(plan));
        }
        if state.plans.len() >= MAX_PLANS {
            state.plans.clear();
        }
        let plan = Arc::new(MatmulPlan::new(&self.handle, shape, state.max_workspace_bytes)?);
        state.plans.insert(*shape, Arc::clone(&plan));
        Ok(plan)
    }

    /// Queues a product. Returns whether there was anything to compute.
    ///
    /// Panics if the sizes do not match.
    pub(super) fn multiply(
        &self,
        stream: &CudaStream,
        pool: &Arc<MemoryPool>,
        product: &MatrixProduct<'_>,
    ) -> Result<bool, DeviceError> {
        product.check_sizes();
        if product.is_empty() {
            return Ok(false);
        }
        let MatrixProduct { d, a, b, c, scales } = product;
        let PreparedMatmul { plan, workspace } = self.prepare(stream, pool, &product.shape())?;
        let _waiting = self.context.wait_tracker.begin_wait();
        plan.run(
            &self.handle,
            stream,
            [b.matrix.view, a.matrix.view, c.view, d.view],
            *scales,
            workspace.as_ref().map(|buffer| buffer.view()),
        )
        .map_err(|failure| self.device_error(stream, failure))?;
        Ok(true)
    }

    /// Returns a plan and its workspace. If the workspace can't be allocated, plans again with half the size.
    fn prepare(
        &self,
        stream: &CudaStream,
        pool: &Arc<MemoryPool>,
        shape: &MatmulShape,
    ) -> Result<PreparedMatmul, DeviceError> {
        loop {
            let plan = self.plan(shape).map_err(|failure| self.device_error(stream, failure))?;
            if plan.workspace_bytes == 0 {
                return Ok(PreparedMatmul { plan, workspace: None });
            }
            match self.workspace(pool, plan.workspace_bytes) {
                Ok(workspace) => return Ok(PreparedMatmul { plan, workspace: Some(workspace) }),
                Err(error) if !error.is_out_of_memory() => return Err(error),
                Err(_) => {
                    let mut state = self.state.locked();
                    state.max_workspace_bytes = plan.workspace_bytes / 2;
                    state.plans.clear();
                }
            }
        }
    }

    /// Returns the shared workspace. Allocates a new one if it is too small.
    fn workspace(&self, pool: &Arc<MemoryPool>, bytes: usize) -> Result<Arc<DeviceBuffer>, DeviceError> {
        let is_large_enough = |workspace: &&Arc<DeviceBuffer>| workspace.len() * 4 >= bytes;
        if let Some(workspace) = self.state.locked().workspace.as_ref().filter(is_large_enough) {
            return Ok(Arc::clone(workspace));
        }
        self.state.locked().workspace = None;
        let workspace = Arc::new(pool.buffer(ElementType::Bits32, bytes.div_ceil(4))?);
        self.state.locked().workspace = Some(Arc::clone(&workspace));
        Ok(workspace)
    }

    /// Prefers the driver's error, which is more precise if the device failed.
    fn device_error(&self, stream: &CudaStream, failure: CublasLtFailure) -> DeviceError {
        let CublasLtFailure { call, status } = failure;
        match stream.query() {
            Err(error) => error,
            Ok(()) => DeviceError::from_cublas(&self.context.device_name, call, status),
        }
    }
}
