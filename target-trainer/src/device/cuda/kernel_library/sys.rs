//! Types that own loaded modules and their kernels. The public interface is safe. Knows no kernel's
//! name or parameters.

use std::ffi::CString;
use std::sync::Arc;

use crate::device::cuda::context::CudaContext;
use crate::device::cuda::driver::{cuModuleGetFunction, cuModuleLoadData, cuModuleUnload};
use crate::device::cuda::error::DeviceError;

/// A module of kernels, loaded into a context.
#[derive(Debug)]
pub(super) struct CudaModule {
    context: Arc<CudaContext>,
    handle: usize,
}

/// A kernel of a module. It keeps the module loaded.
#[derive(Debug, Clone)]
pub(in crate::device::cuda) struct CudaKernel {
    pub(in crate::device::cuda) handle: usize,
    _module: Arc<CudaModule>,
}

impl CudaModule {
    /// Loads PTX text.
    pub(super) fn load(context: &Arc<CudaContext>, ptx: &str) -> Result<Arc<CudaModule>, DeviceError> {
        let text = CString::new(ptx).unwrap_or_default();
        let mut handle = 0;
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: the out-pointer is valid, and the text ends with a NUL.
        let code = unsafe { cuModuleLoadData(&raw mut handle, text.as_ptr().cast()) };
        context.check("cuModuleLoadData", code)?;
        Ok(Arc::new(CudaModule { context: Arc::clone(context), handle }))
    }

    /// Looks up a kernel by its name.
    pub(super) fn kernel(self: &Arc<CudaModule>, name: &str) -> Result<CudaKernel, DeviceError> {
        let text = CString::new(name).unwrap_or_default();
        let mut handle = 0;
        // SAFETY: the out-pointer is valid, the module is loaded, and the name ends with a NUL.
        let code = unsafe { cuModuleGetFunction(&raw mut handle, self.handle, text.as_ptr()) };
        self.context.check("cuModuleGetFunction", code)?;
        Ok(CudaKernel { handle, _module: Arc::clone(self) })
    }
}

impl Drop for CudaModule {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the module is unloaded exactly once, and its kernels hold an `Arc` of it, so none
            // outlives it.
            unsafe { cuModuleUnload(self.handle) };
        }
    }
}
