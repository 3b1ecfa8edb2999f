//! Matrix products with cublasLt. One plan is created and cached for each shape.
//!
//! Matrices are row-major here and column-major in cublasLt. A product of row-major matrices is therefore
//! computed as the product of their transposes in reverse order. Sums are in f32, never in TF32.

mod sys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::cuda_device::CudaDevice;
use super::error::DeviceError;
use super::memory::{DeviceBuffer, ElementType};
use super::ops::MatrixView;
use super::sys::CudaContext;
use crate::locks::LockExt;
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
    /// Rows and columns of the factor, after the transposition.
    fn size(&self) -> (usize, usize) {
        match self.orientation {
            Orientation::AsStored => (self.matrix.rows, self.matrix.cols),
            Orientation::Transposed => (self.matrix.cols, self.matrix.rows),
        }
    }
}

/// The cublasLt handle, the cached plans and their shared workspace.
#[derive(Debug)]
pub(super) struct CublasLt {
    handle: CublasLtHandle,
    device: String,
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

impl CublasLt {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CublasLt, DeviceError> {
        let device = context.device_name.clone();
        let handle = CublasLtHandle::new().map_err(|(call, status)| match status {
            1 => DeviceError::Unavailable {
                device: device.clone(),
                reason: format!("`{call}` failed: install cuBLAS (libcublasLt.so) of CUDA 12"),
                code: None,
            },
            _ => DeviceError::from_cublas(&device, call, status),
        })?;
        let state = CublasLtState {
            plans: HashMap::new(),
            workspace: None,
            max_workspace_bytes: MAX_WORKSPACE_BYTES,
        };
        Ok(CublasLt { handle, device, state: Mutex::new(state) })
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

    /// Returns a plan and its workspace. If the workspace can't be allocated, plans again with half the size.
    fn prepare(
        &self,
        device: &CudaDevice,
        shape: &MatmulShape,
    ) -> Result<(Arc<MatmulPlan>, Option<Arc<DeviceBuffer>>), DeviceError> {
        loop {
            let plan = self.plan(shape).map_err(|failure| self.device_error(device, failure))?;
            if plan.workspace_bytes == 0 {
                return Ok((plan, None));
            }
            match self.workspace(device, plan.workspace_bytes) {
                Ok(workspace) => return Ok((plan, Some(workspace))),
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
    fn workspace(&self, device: &CudaDevice, bytes: usize) -> Result<Arc<DeviceBuffer>, DeviceError> {
        let is_large_enough = |workspace: &&Arc<DeviceBuffer>| workspace.len() * 4 >= bytes;
        if let Some(workspace) = self.state.locked().workspace.as_ref().filter(is_large_enough) {
            return Ok(Arc::clone(workspace));
        }
        self.state.locked().workspace = None;
        let workspace = Arc::new(device.buffer(ElementType::Bits32, bytes.div_ceil(4))?);
        self.state.locked().workspace = Some(Arc::clone(&workspace));
        Ok(workspace)
    }

    /// Prefers the driver's error, which is more precise if the device failed.
    fn device_error(&self, device: &CudaDevice, (call, status): CublasLtFailure) -> DeviceError {
        match device.compute_stream.query() {
            Err(error) => error,
            Ok(()) => DeviceError::from_cublas(&self.device, call, status),
        }
    }
}

impl CudaDevice {
    /// `d[m, n] = alpha a[m, k] b[k, n] + beta c[m, n]`. If `c` is `None`, `d` is used in its place.
    ///
    /// # Errors
    ///
    /// Returns the error of cublasLt or of the driver.
    ///
    /// # Panics
    ///
    /// If the sizes do not match.
    pub fn gemm(
        &self,
        d: MatrixView<'_>,
        a: Factor<'_>,
        b: Factor<'_>,
        c: Option<MatrixView<'_>>,
        (alpha, beta): (f32, f32),
    ) -> Result<(), DeviceError> {
        let c = c.unwrap_or(d);
        let ((m, k), (b_rows, n)) = (a.size(), b.size());
        assert!(
            k == b_rows && (d.rows, d.cols) == (m, n) && (c.rows, c.cols) == (m, n),
            "{m} x {k} times {b_rows} x {n} is not {} x {}",
            d.rows,
            d.cols
        );
        if m == 0 || n == 0 {
            return Ok(());
        }
        assert!(k > 0, "the inner dimension of a product is 0");
        // cublasLt computes the transposed product, so the factors are swapped.
        let shape = MatmulShape {
            transposed: [b.orientation == Orientation::Transposed, a.orientation == Orientation::Transposed],
            layouts: [b.matrix.layout(), a.matrix.layout(), c.layout(), d.layout()],
        };
        let cublaslt = self.cublaslt();
        let (plan, workspace) = cublaslt.prepare(self, &shape)?;
        let _waiting = self.context().wait_tracker.begin_wait();
        plan.run(
            &cublaslt.handle,
            &self.compute_stream,
            [b.matrix.view, a.matrix.view, c.view, d.view],
            (alpha, beta),
            workspace.as_ref().map(|buffer| buffer.view()),
        )
        .map_err(|failure| cublaslt.device_error(self, failure))?;
        self.record_profile("matmul")
    }
}
