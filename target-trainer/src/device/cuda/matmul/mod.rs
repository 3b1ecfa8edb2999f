//! Matrix products by cublasLt. It is asked once for each shape; plans are kept. Row-major here, column-major there: a product
//! of row-major matrices is the product of their transposes the other way around. Sums are in f32, never in TF32.

mod sys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cuda_device::CudaDevice;
use super::error::DeviceError;
use super::memory::{DeviceBuffer, ElementType};
use super::ops::MatrixView;
use super::sys::CudaContext;
use sys::{CublasLtFailure, CublasLtHandle, MatmulPlan, MatmulShape, MatrixLayout};

/// NVIDIA's own advice for cards from the H100 on. Only as much is taken as a plan wants.
const MAX_WORKSPACE_BYTES: usize = 32 << 20;
/// Micro-batches of ever different lengths would let plans pile up.
const MAX_PLANS: usize = 4096;

/// Which way a factor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    AsStored,
    Transposed,
}

/// A factor of a product, as it lies.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    matrix: MatrixView<'a>,
    orientation: Orientation,
}

impl<'a> MatrixView<'a> {
    pub fn as_stored(self) -> Factor<'a> {
        Factor { matrix: self, orientation: Orientation::AsStored }
    }

    pub fn transposed(self) -> Factor<'a> {
        Factor { matrix: self, orientation: Orientation::Transposed }
    }

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
    /// Rows and columns, as read.
    fn size(&self) -> (usize, usize) {
        match self.orientation {
            Orientation::AsStored => (self.matrix.rows, self.matrix.cols),
            Orientation::Transposed => (self.matrix.cols, self.matrix.rows),
        }
    }
}

/// The library, its plans and the workspace that they share.
#[derive(Debug)]
pub(super) struct CublasLt {
    handle: CublasLtHandle,
    device: String,
    state: Mutex<CublasLtState>,
}

#[derive(Debug)]
struct CublasLtState {
    plans: HashMap<MatmulShape, Arc<MatmulPlan>>,
    workspace: Option<Arc<DeviceBuffer>>,
    /// Smaller once the device did not have so much.
    max_workspace_bytes: usize,
}

impl CublasLt {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CublasLt, DeviceError> {
        let device = context.device_name.clone();
        let handle = CublasLtHandle::new().map_err(|(call, status)| match status {
            1 => DeviceError::Unavailable {
                device: device.clone(),
                why: format!("`{call}` failed: install cuBLAS (libcublasLt.so) of CUDA 12"),
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

    fn state(&self) -> MutexGuard<'_, CublasLtState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workspace goes back to the pool.
    pub(super) fn release_workspace(&self) {
        self.state().workspace = None;
    }

    fn plan(&self, shape: &MatmulShape) -> Result<Arc<MatmulPlan>, CublasLtFailure> {
        let mut state = self.state();
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

    /// A plan that is made for a workspace which is not to be had is made anew for less.
    fn prepare(
        &self,
        device: &CudaDevice,
        shape: &MatmulShape,
    ) -> Result<(Arc<MatmulPlan>, Option<Arc<DeviceBuffer>>), DeviceError> {
        loop {
            let plan = self.plan(shape).map_err(|failed| self.device_error(device, failed))?;
            if plan.workspace_bytes == 0 {
                return Ok((plan, None));
            }
            match self.workspace(device, plan.workspace_bytes) {
                Ok(workspace) => return Ok((plan, Some(workspace))),
                Err(error) if !error.is_out_of_memory() => return Err(error),
                Err(_) => {
                    let mut state = self.state();
                    state.max_workspace_bytes = plan.workspace_bytes / 2;
                    state.plans.clear();
                }
            }
        }
    }

    fn workspace(&self, device: &CudaDevice, bytes: usize) -> Result<Arc<DeviceBuffer>, DeviceError> {
        let enough = |workspace: &&Arc<DeviceBuffer>| workspace.len() * 4 >= bytes;
        if let Some(workspace) = self.state().workspace.as_ref().filter(enough) {
            return Ok(Arc::clone(workspace));
        }
        self.state().workspace = None;
        let workspace = Arc::new(device.buffer(ElementType::Bits32, bytes.div_ceil(4))?);
        self.state().workspace = Some(Arc::clone(&workspace));
        Ok(workspace)
    }

    /// The driver knows better what went wrong, if it was the device.
    fn device_error(&self, device: &CudaDevice, (call, status): CublasLtFailure) -> DeviceError {
        match device.compute_stream.query() {
            Err(error) => error,
            Ok(()) => DeviceError::from_cublas(&self.device, call, status),
        }
    }
}

impl CudaDevice {
    /// `d[m, n] = alpha a[m, k] b[k, n] + beta c[m, n]`. Without `c` it is `d` itself.
    pub fn gemm(
        &self,
        d: MatrixView<'_>,
        a: Factor<'_>,
        b: Factor<'_>,
        c: Option<MatrixView<'_>>,
        (alpha, beta): (f32, f32),
    ) -> Result<(), DeviceError> {
        let c = c.unwrap_or(d);
        let ((m, k), (k_too, n)) = (a.size(), b.size());
        assert!(
            k == k_too && (d.rows, d.cols) == (m, n) && (c.rows, c.cols) == (m, n),
            "{m} x {k} times {k_too} x {n} is not {} x {}",
            d.rows,
            d.cols
        );
        if m == 0 || n == 0 {
            return Ok(());
        }
        assert!(k > 0, "a product over nothing");
        // Transposed as a whole, so the factors change places.
        let shape = MatmulShape {
            transposed: [b.orientation == Orientation::Transposed, a.orientation == Orientation::Transposed],
            layouts: [b.matrix.layout(), a.matrix.layout(), c.layout(), d.layout()],
        };
        let matmul = self.cublaslt();
        let (plan, workspace) = matmul.prepare(self, &shape)?;
        let _waiting = self.context().wait_tracker.begin_wait();
        plan.run(
            &matmul.handle,
            &self.compute_stream,
            [b.matrix.view, a.matrix.view, c.view, d.view],
            (alpha, beta),
            workspace.as_ref().map(|buffer| buffer.view()),
        )
        .map_err(|failed| matmul.device_error(self, failed))?;
        self.record_profile("matmul")
    }
}
