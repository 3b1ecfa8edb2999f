//! Owners of loaded programs. Unsafe inside, safe outside.

use std::ffi::CString;
use std::sync::Arc;

use crate::device::cuda::driver::{cuModuleGetFunction, cuModuleLoadData, cuModuleUnload};
use crate::device::cuda::error::DeviceError;
use crate::device::cuda::sys::CudaContext;

/// Loaded kernels.
#[derive(Debug)]
pub(super) struct CudaModule {
    context: Arc<CudaContext>,
    handle: usize,
}

/// One of them.
#[derive(Debug, Clone)]
pub(in crate::device::cuda) struct CudaKernel {
    pub(in crate::device::cuda) handle: usize,
    _module: Arc<CudaModule>,
}

impl CudaModule {
    /// From the text of PTX.
    pub(super) fn load(context: &Arc<CudaContext>, ptx: &str) -> Result<Arc<CudaModule>, DeviceError> {
        let text = CString::new(ptx).unwrap_or_default();
        let mut handle = 0;
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: a place for the answer, and a text that is ended by a NUL.
        let code = unsafe { cuModuleLoadData(&raw mut handle, text.as_ptr().cast()) };
        context.check("cuModuleLoadData", code)?;
        Ok(Arc::new(CudaModule { context: Arc::clone(context), handle }))
    }

    pub(super) fn kernel(self: &Arc<CudaModule>, name: &str) -> Result<CudaKernel, DeviceError> {
        let text = CString::new(name).unwrap_or_default();
        let mut handle = 0;
        // SAFETY: as of `load`.
        let code = unsafe { cuModuleGetFunction(&raw mut handle, self.handle, text.as_ptr()) };
        self.context.check("cuModuleGetFunction", code)?;
        Ok(CudaKernel { handle, _module: Arc::clone(self) })
    }
}

impl Drop for CudaModule {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once, unloaded once; its kernels hold it.
            unsafe { cuModuleUnload(self.handle) };
        }
    }
}
