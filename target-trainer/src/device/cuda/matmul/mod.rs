//! Matrix products by cublasLt. It is asked once for each shape; plans are kept. Row-major here, column-major there: a product
//! of row-major matrices is the product of their transposes the other way around. Sums are in f32, never in TF32.

mod sys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::context::Device;
use super::error::DeviceError;
use super::memory::{Buffer, Element};
use super::ops::Rows;
use super::sys::Context;
use sys::{Failed, Handle, Layout, Plan, Shape};

/// NVIDIA's own advice for cards from the H100 on. Only as much is taken as a plan wants.
const MOST_WORKSPACE: usize = 32 << 20;
/// Micro-batches of ever different lengths would let plans pile up.
const MOST_PLANS: usize = 4096;

/// Which way a factor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    AsIs,
    Transposed,
}

/// A factor of a product, as it lies.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    rows: Rows<'a>,
    read: Read,
}

impl<'a> Rows<'a> {
    pub fn as_is(self) -> Factor<'a> {
        Factor { rows: self, read: Read::AsIs }
    }

    pub fn transposed(self) -> Factor<'a> {
        Factor { rows: self, read: Read::Transposed }
    }

    fn layout(self) -> Layout {
        Layout {
            element: self.view.element,
            rows: self.cols as u64,
            cols: self.rows as u64,
            ld: self.ld as i64,
            alignment: 1 << self.view.at.trailing_zeros().min(8),
        }
    }
}

impl Factor<'_> {
    /// Rows and columns, as read.
    fn size(&self) -> (usize, usize) {
        match self.read {
            Read::AsIs => (self.rows.rows, self.rows.cols),
            Read::Transposed => (self.rows.cols, self.rows.rows),
        }
    }
}

/// The library, its plans and the workspace that they share.
#[derive(Debug)]
pub(super) struct Matmul {
    handle: Handle,
    device: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plans: HashMap<Shape, Arc<Plan>>,
    workspace: Option<Arc<Buffer>>,
    /// Smaller once the device did not have so much.
    most_workspace: usize,
}

impl Matmul {
    pub(super) fn new(context: &Arc<Context>) -> Result<Matmul, DeviceError> {
        let device = context.device.clone();
        let handle = Handle::new().map_err(|(call, status)| match status {
            1 => DeviceError::Missing {
                device: device.clone(),
                why: format!("`{call}` failed: install cuBLAS (libcublasLt.so) of CUDA 12"),
                code: None,
            },
            _ => DeviceError::of_cublas(&device, call, status),
        })?;
        let state = State { plans: HashMap::new(), workspace: None, most_workspace: MOST_WORKSPACE };
        Ok(Matmul { handle, device, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workspace goes back to the pool.
    pub(super) fn release(&self) {
        self.state().workspace = None;
    }

    fn plan(&self, shape: &Shape) -> Result<Arc<Plan>, Failed> {
        let mut state = self.state();
        if let Some(plan) = state.plans.get(shape) {
            return Ok(Arc::clone(plan));
        }
        if state.plans.len() >= MOST_PLANS {
            state.plans.clear();
        }
        let plan = Arc::new(Plan::new(&self.handle, shape, state.most_workspace)?);
        state.plans.insert(*shape, Arc::clone(&plan));
        Ok(plan)
    }

    /// A plan that is made for a workspace which is not to be had is made anew for less.
    fn prepare(
        &self,
        device: &Device,
        shape: &Shape,
    ) -> Result<(Arc<Plan>, Option<Arc<Buffer>>), DeviceError> {
        loop {
            let plan = self.plan(shape).map_err(|failed| self.failed(device, failed))?;
            if plan.workspace_bytes == 0 {
                return Ok((plan, None));
            }
            match self.workspace(device, plan.workspace_bytes) {
                Ok(workspace) => return Ok((plan, Some(workspace))),
                Err(error) if !error.is_out_of_memory() => return Err(error),
                Err(_) => {
                    let mut state = self.state();
                    state.most_workspace = plan.workspace_bytes / 2;
                    state.plans.clear();
                }
            }
        }
    }

    fn workspace(&self, device: &Device, bytes: usize) -> Result<Arc<Buffer>, DeviceError> {
        let enough = |workspace: &&Arc<Buffer>| workspace.len() * 4 >= bytes;
        if let Some(workspace) = self.state().workspace.as_ref().filter(enough) {
            return Ok(Arc::clone(workspace));
        }
        self.state().workspace = None;
        let workspace = Arc::new(device.buffer(Element::Word, bytes.div_ceil(4))?);
        self.state().workspace = Some(Arc::clone(&workspace));
        Ok(workspace)
    }

    /// The driver knows better what went wrong, if it was the device.
    fn failed(&self, device: &Device, (call, status): Failed) -> DeviceError {
        match device.compute.query() {
            Err(error) => error,
            Ok(()) => DeviceError::of_cublas(&self.device, call, status),
        }
    }
}

impl Device {
    /// `d[m, n] = alpha a[m, k] b[k, n] + beta c[m, n]`. Without `c` it is `d` itself.
    pub fn product(
        &self,
        d: Rows<'_>,
        a: Factor<'_>,
        b: Factor<'_>,
        c: Option<Rows<'_>>,
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
        let shape = Shape {
            transposed: [b.read == Read::Transposed, a.read == Read::Transposed],
            layouts: [b.rows.layout(), a.rows.layout(), c.layout(), d.layout()],
        };
        let matmul = self.matmul();
        let (plan, workspace) = matmul.prepare(self, &shape)?;
        let _waiting = self.context().pulse.waiting();
        plan.run(
            &matmul.handle,
            &self.compute,
            [b.rows.view, a.rows.view, c.view, d.view],
            (alpha, beta),
            workspace.as_ref().map(|buffer| buffer.view()),
        )
        .map_err(|failed| matmul.failed(self, failed))?;
        self.profiled("matmul")
    }
}
