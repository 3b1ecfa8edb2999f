//! Exports every function of the driver by name. Each of them jumps to `simgpu_hook_entry`, which `hooks`
//! defines. Unsafe: naked functions from a macro. The list is that of cudarc 0.19.10, CUDA 11.4 to 13.4. Must
//! not know what any function does.

use std::arch::naked_asm;

/// Number of trampolines, for functions of a real driver that are only known at run time.
pub(crate) const TRAMPOLINE_COUNT: usize = 1024;
/// Number of functions: those of the list, `cublasLtMatmul`, and the trampolines.
pub(crate) const FUNCTION_COUNT: usize = NAMES.len() + TRAMPOLINE_COUNT;

macro_rules! symbols {
    ($($name:ident,)*) => {
        #[expect(non_camel_case_types, reason = "CUDA's own names")]
        #[repr(u32)]
        enum Symbol { $($name,)* Count }

        /// The names of all functions, by number.
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name),)* MATMUL];
        /// The exported functions, by number.
        pub(crate) const EXPORTED: &[unsafe extern "C" fn()] = &[$(exported::$name,)*];
        /// The number of `cublasLtMatmul`, which rules treat as a launch of the driver.
        pub(crate) const MATMUL_INDEX: usize = Symbol::Count as usize;

        mod exported {
            use super::{Symbol, naked_asm};
            $(
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                pub(super) unsafe extern "C" fn $name() {
                    naked_asm!(
                        "mov eax, {index}",
                        "jmp simgpu_hook_entry",
                        index = const Symbol::$name as u32,
                    )
                }
            )*
        }
    };
}

const MATMUL: &str = "cublasLtMatmul";

symbols! {
    cuArray3DCreate_v2, cuArray3DGetDescriptor_v2, cuArrayCreate_v2, cuArrayDestroy,
    cuArrayGetDescriptor_v2, cuArrayGetMemoryRequirements, cuArrayGetPlane, cuArrayGetSparseProperties,
    cuCoredumpDeregisterCompleteCallback, cuCoredumpDeregisterStartCallback, cuCoredumpGetAttribute,
    cuCoredumpGetAttributeGlobal, cuCoredumpRegisterCompleteCallback, cuCoredumpRegisterStartCallback,
    cuCoredumpSetAttribute, cuCoredumpSetAttributeGlobal, cuCtxAttach, cuCtxCreate_v2, cuCtxCreate_v3,
    cuCtxCreate_v4, cuCtxDestroy_v2, cuCtxDetach, cuCtxDisablePeerAccess, cuCtxEnablePeerAccess,
    cuCtxFromGreenCtx, cuCtxGetApiVersion, cuCtxGetCacheConfig, cuCtxGetCurrent, cuCtxGetDevResource,
    cuCtxGetDevice, cuCtxGetDevice_v2, cuCtxGetExecAffinity, cuCtxGetFlags, cuCtxGetId, cuCtxGetLimit,
    cuCtxGetSharedMemConfig, cuCtxGetStreamPriorityRange, cuCtxPopCurrent_v2, cuCtxPushCurrent_v2,
    cuCtxRecordEvent, cuCtxResetPersistingL2Cache, cuCtxSetCacheConfig, cuCtxSetCurrent, cuCtxSetFlags,
    cuCtxSetLimit, cuCtxSetSharedMemConfig, cuCtxSynchronize, cuCtxSynchronize_v2, cuCtxWaitEvent,
    cuDestroyExternalMemory, cuDestroyExternalSemaphore, cuDevResourceGenerateDesc, cuDevSmResourceSplit,
    cuDevSmResourceSplitByCount, cuDeviceCanAccessPeer, cuDeviceComputeCapability, cuDeviceGet,
    cuDeviceGetAttribute, cuDeviceGetByPCIBusId, cuDeviceGetCliqueCount, cuDeviceGetCliqueInfo,
    cuDeviceGetCount, cuDeviceGetDefaultMemPool, cuDeviceGetDevResource, cuDeviceGetExecAffinitySupport,
    cuDeviceGetFabricClusterUuid, cuDeviceGetGraphMemAttribute, cuDeviceGetHostAtomicCapabilities,
    cuDeviceGetLuid, cuDeviceGetMemPool, cuDeviceGetName, cuDeviceGetP2PAtomicCapabilities,
    cuDeviceGetP2PAttribute, cuDeviceGetPCIBusId, cuDeviceGetProperties,
    cuDeviceGetTexture1DLinearMaxWidth, cuDeviceGetUuid, cuDeviceGetUuid_v2, cuDeviceGraphMemTrim,
    cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxReset_v2,
    cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxSetFlags_v2, cuDeviceRegisterAsyncNotification,
    cuDeviceSetGraphMemAttribute, cuDeviceSetMemPool, cuDeviceTotalMem_v2,
    cuDeviceUnregisterAsyncNotification, cuDriverGetVersion, cuEventCreate, cuEventDestroy_v2,
    cuEventElapsedTime, cuEventElapsedTime_v2, cuEventQuery, cuEventRecord, cuEventRecordWithFlags,
    cuEventSynchronize, cuExternalMemoryGetMappedBuffer, cuExternalMemoryGetMappedMipmappedArray,
    cuFlushGPUDirectRDMAWrites, cuFuncGetAttribute, cuFuncGetModule, cuFuncGetName, cuFuncGetParamCount,
    cuFuncGetParamInfo, cuFuncIsLoaded, cuFuncLoad, cuFuncSetAttribute, cuFuncSetBlockShape,
    cuFuncSetCacheConfig, cuFuncSetSharedMemConfig, cuFuncSetSharedSize, cuGetErrorName, cuGetErrorString,
    cuGetExportTable, cuGetProcAddress, cuGetProcAddress_v2, cuGraphAddBatchMemOpNode,
    cuGraphAddChildGraphNode, cuGraphAddDependencies, cuGraphAddDependencies_v2, cuGraphAddEmptyNode,
    cuGraphAddEventRecordNode, cuGraphAddEventWaitNode, cuGraphAddExternalSemaphoresSignalNode,
    cuGraphAddExternalSemaphoresWaitNode, cuGraphAddHostNode, cuGraphAddKernelNode,
    cuGraphAddKernelNode_v2, cuGraphAddMemAllocNode, cuGraphAddMemFreeNode, cuGraphAddMemcpyNode,
    cuGraphAddMemsetNode, cuGraphAddNode, cuGraphAddNode_v2, cuGraphAddNode_v3,
    cuGraphBatchMemOpNodeGetParams, cuGraphBatchMemOpNodeSetParams, cuGraphChildGraphNodeGetGraph,
    cuGraphClone, cuGraphConditionalHandleCreate, cuGraphCreate, cuGraphDebugDotPrint, cuGraphDestroy,
    cuGraphDestroyNode, cuGraphEventRecordNodeGetEvent, cuGraphEventRecordNodeSetEvent,
    cuGraphEventWaitNodeGetEvent, cuGraphEventWaitNodeSetEvent, cuGraphExecBatchMemOpNodeSetParams,
    cuGraphExecChildGraphNodeSetParams, cuGraphExecDestroy, cuGraphExecEventRecordNodeSetEvent,
    cuGraphExecEventWaitNodeSetEvent, cuGraphExecExternalSemaphoresSignalNodeSetParams,
    cuGraphExecExternalSemaphoresWaitNodeSetParams, cuGraphExecGetFlags, cuGraphExecGetId,
    cuGraphExecHostNodeSetParams, cuGraphExecKernelNodeSetParams, cuGraphExecKernelNodeSetParams_v2,
    cuGraphExecMemcpyNodeSetParams, cuGraphExecMemsetNodeSetParams, cuGraphExecNodeSetParams,
    cuGraphExecUpdate, cuGraphExecUpdate_v2, cuGraphExternalSemaphoresSignalNodeGetParams,
    cuGraphExternalSemaphoresSignalNodeSetParams, cuGraphExternalSemaphoresWaitNodeGetParams,
    cuGraphExternalSemaphoresWaitNodeSetParams, cuGraphGetEdges, cuGraphGetEdges_v2, cuGraphGetId,
    cuGraphGetNodes, cuGraphGetRootNodes, cuGraphHostNodeGetParams, cuGraphHostNodeSetParams,
    cuGraphInstantiateWithFlags, cuGraphInstantiateWithParams, cuGraphInstantiate_v2,
    cuGraphKernelNodeCopyAttributes, cuGraphKernelNodeGetAttribute, cuGraphKernelNodeGetParams,
    cuGraphKernelNodeGetParams_v2, cuGraphKernelNodeSetAttribute, cuGraphKernelNodeSetParams,
    cuGraphKernelNodeSetParams_v2, cuGraphLaunch, cuGraphMemAllocNodeGetParams,
    cuGraphMemFreeNodeGetParams, cuGraphMemcpyNodeGetParams, cuGraphMemcpyNodeSetParams,
    cuGraphMemsetNodeGetParams, cuGraphMemsetNodeSetParams, cuGraphNodeFindInClone,
    cuGraphNodeGetContainingGraph, cuGraphNodeGetDependencies, cuGraphNodeGetDependencies_v2,
    cuGraphNodeGetDependentNodes, cuGraphNodeGetDependentNodes_v2, cuGraphNodeGetEnabled,
    cuGraphNodeGetLocalId, cuGraphNodeGetParams, cuGraphNodeGetToolsId, cuGraphNodeGetType,
    cuGraphNodeSetEnabled, cuGraphNodeSetParams, cuGraphNodeSetParams_v2, cuGraphReleaseUserObject,
    cuGraphRemoveDependencies, cuGraphRemoveDependencies_v2, cuGraphRetainUserObject, cuGraphUpload,
    cuGraphicsMapResources, cuGraphicsResourceGetMappedMipmappedArray,
    cuGraphicsResourceGetMappedPointer_v2, cuGraphicsResourceSetMapFlags_v2,
    cuGraphicsSubResourceGetMappedArray, cuGraphicsUnmapResources, cuGraphicsUnregisterResource,
    cuGreenCtxCreate, cuGreenCtxDestroy, cuGreenCtxGetDevResource, cuGreenCtxGetId, cuGreenCtxRecordEvent,
    cuGreenCtxStreamCreate, cuGreenCtxWaitEvent, cuImportExternalMemory, cuImportExternalSemaphore, cuInit,
    cuIpcCloseMemHandle, cuIpcGetEventHandle, cuIpcGetMemHandle, cuIpcOpenEventHandle,
    cuIpcOpenMemHandle_v2, cuKernelGetAttribute, cuKernelGetFunction, cuKernelGetLibrary, cuKernelGetName,
    cuKernelGetParamCount, cuKernelGetParamInfo, cuKernelSetAttribute, cuKernelSetCacheConfig, cuLaunch,
    cuLaunchCooperativeKernel, cuLaunchCooperativeKernelMultiDevice, cuLaunchGrid, cuLaunchGridAsync,
    cuLaunchHostFunc, cuLaunchHostFunc_v2, cuLaunchKernel, cuLaunchKernelEx, cuLibraryEnumerateKernels,
    cuLibraryGetGlobal, cuLibraryGetKernel, cuLibraryGetKernelCount, cuLibraryGetManaged,
    cuLibraryGetModule, cuLibraryGetUnifiedFunction, cuLibraryLoadData, cuLibraryLoadFromFile,
    cuLibraryUnload, cuLinkAddData_v2, cuLinkAddFile_v2, cuLinkComplete, cuLinkCreate_v2, cuLinkDestroy,
    cuLogicalEndpointAddDevice, cuLogicalEndpointBindAddr, cuLogicalEndpointBindMem,
    cuLogicalEndpointCreate, cuLogicalEndpointDestroy, cuLogicalEndpointExport, cuLogicalEndpointGetLimits,
    cuLogicalEndpointIdRelease, cuLogicalEndpointIdReserve, cuLogicalEndpointImport,
    cuLogicalEndpointQuery, cuLogicalEndpointUnbind, cuLogsCurrent, cuLogsDumpToFile, cuLogsDumpToMemory,
    cuLogsRegisterCallback, cuLogsUnregisterCallback, cuMemAddressFree, cuMemAddressReserve, cuMemAdvise,
    cuMemAdvise_v2, cuMemAllocAsync, cuMemAllocFromPoolAsync, cuMemAllocHost_v2, cuMemAllocManaged,
    cuMemAllocPitch_v2, cuMemAlloc_v2, cuMemBatchDecompressAsync, cuMemCreate,
    cuMemDiscardAndPrefetchBatchAsync, cuMemDiscardBatchAsync, cuMemExportToShareableHandle,
    cuMemFreeAsync, cuMemFreeHost, cuMemFree_v2, cuMemGetAccess, cuMemGetAddressRange_v2,
    cuMemGetAllocationGranularity, cuMemGetAllocationPropertiesFromHandle, cuMemGetDefaultMemPool,
    cuMemGetHandleForAddressRange, cuMemGetInfo_v2, cuMemGetLocationInfo, cuMemGetMemPool, cuMemHostAlloc,
    cuMemHostGetDevicePointer_v2, cuMemHostGetFlags, cuMemHostRegister_v2, cuMemHostUnregister,
    cuMemImportFromShareableHandle, cuMemMap, cuMemMapArrayAsync, cuMemPoolCreate, cuMemPoolDestroy,
    cuMemPoolExportPointer, cuMemPoolExportToShareableHandle, cuMemPoolGetAccess, cuMemPoolGetAttribute,
    cuMemPoolImportFromShareableHandle, cuMemPoolImportPointer, cuMemPoolSetAccess, cuMemPoolSetAttribute,
    cuMemPoolTrimTo, cuMemPrefetchAsync, cuMemPrefetchAsync_v2, cuMemPrefetchBatchAsync,
    cuMemRangeGetAttribute, cuMemRangeGetAttributes, cuMemRelease, cuMemRetainAllocationHandle,
    cuMemSetAccess, cuMemSetMemPool, cuMemUnmap, cuMemcpy, cuMemcpy2DAsync_v2, cuMemcpy2DUnaligned_v2,
    cuMemcpy2D_v2, cuMemcpy3DAsync_v2, cuMemcpy3DBatchAsync, cuMemcpy3DBatchAsync_v2, cuMemcpy3DPeer,
    cuMemcpy3DPeerAsync, cuMemcpy3DWithAttributesAsync, cuMemcpy3D_v2, cuMemcpyAsync, cuMemcpyAtoA_v2,
    cuMemcpyAtoD_v2, cuMemcpyAtoHAsync_v2, cuMemcpyAtoH_v2, cuMemcpyBatchAsync, cuMemcpyBatchAsync_v2,
    cuMemcpyDtoA_v2, cuMemcpyDtoDAsync_v2, cuMemcpyDtoD_v2, cuMemcpyDtoHAsync_v2, cuMemcpyDtoH_v2,
    cuMemcpyHtoAAsync_v2, cuMemcpyHtoA_v2, cuMemcpyHtoDAsync_v2, cuMemcpyHtoD_v2, cuMemcpyPeer,
    cuMemcpyPeerAsync, cuMemcpyWithAttributesAsync, cuMemsetD16Async, cuMemsetD16_v2, cuMemsetD2D16Async,
    cuMemsetD2D16_v2, cuMemsetD2D32Async, cuMemsetD2D32_v2, cuMemsetD2D8Async, cuMemsetD2D8_v2,
    cuMemsetD32Async, cuMemsetD32_v2, cuMemsetD8Async, cuMemsetD8_v2, cuMipmappedArrayCreate,
    cuMipmappedArrayDestroy, cuMipmappedArrayGetLevel, cuMipmappedArrayGetMemoryRequirements,
    cuMipmappedArrayGetSparseProperties, cuModuleEnumerateFunctions, cuModuleGetFunction,
    cuModuleGetFunctionCount, cuModuleGetGlobal_v2, cuModuleGetLoadingMode, cuModuleGetSurfRef,
    cuModuleGetTexRef, cuModuleLoad, cuModuleLoadData, cuModuleLoadDataEx, cuModuleLoadFatBinary,
    cuModuleUnload, cuMulticastAddDevice, cuMulticastBindAddr, cuMulticastBindAddr_v2, cuMulticastBindMem,
    cuMulticastBindMem_v2, cuMulticastCreate, cuMulticastGetGranularity, cuMulticastUnbind,
    cuOccupancyAvailableDynamicSMemPerBlock, cuOccupancyMaxActiveBlocksPerMultiprocessor,
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, cuOccupancyMaxActiveClusters,
    cuOccupancyMaxPotentialBlockSize, cuOccupancyMaxPotentialBlockSizeWithFlags,
    cuOccupancyMaxPotentialClusterSize, cuParamSetSize, cuParamSetTexRef, cuParamSetf, cuParamSeti,
    cuParamSetv, cuPointerGetAttribute, cuPointerGetAttributes, cuPointerSetAttribute,
    cuProfilerInitialize, cuProfilerStart, cuProfilerStop, cuSignalExternalSemaphoresAsync,
    cuStreamAddCallback, cuStreamAttachMemAsync, cuStreamBatchMemOp, cuStreamBatchMemOp_v2,
    cuStreamBeginCaptureToCig, cuStreamBeginCaptureToGraph, cuStreamBeginCapture_v2,
    cuStreamBeginRecaptureToGraph, cuStreamCopyAttributes, cuStreamCreate, cuStreamCreateWithPriority,
    cuStreamDestroy_v2, cuStreamEndCapture, cuStreamEndCaptureToCig, cuStreamGetAttribute,
    cuStreamGetCaptureInfo, cuStreamGetCaptureInfo_v2, cuStreamGetCaptureInfo_v3, cuStreamGetCtx,
    cuStreamGetCtx_v2, cuStreamGetDevResource, cuStreamGetDevice, cuStreamGetFlags, cuStreamGetGreenCtx,
    cuStreamGetId, cuStreamGetPriority, cuStreamIsCapturing, cuStreamQuery, cuStreamSetAttribute,
    cuStreamSynchronize, cuStreamUpdateCaptureDependencies, cuStreamUpdateCaptureDependencies_v2,
    cuStreamWaitEvent, cuStreamWaitValue32, cuStreamWaitValue32_v2, cuStreamWaitValue64,
    cuStreamWaitValue64_v2, cuStreamWriteValue32, cuStreamWriteValue32_v2, cuStreamWriteValue64,
    cuStreamWriteValue64_v2, cuSurfObjectCreate, cuSurfObjectDestroy, cuSurfObjectGetResourceDesc,
    cuSurfRefGetArray, cuSurfRefSetArray, cuTensorMapEncodeIm2col, cuTensorMapEncodeIm2colWide,
    cuTensorMapEncodeTiled, cuTensorMapReplaceAddress, cuTexObjectCreate, cuTexObjectDestroy,
    cuTexObjectGetResourceDesc, cuTexObjectGetResourceViewDesc, cuTexObjectGetTextureDesc, cuTexRefCreate,
    cuTexRefDestroy, cuTexRefGetAddressMode, cuTexRefGetAddress_v2, cuTexRefGetArray,
    cuTexRefGetBorderColor, cuTexRefGetFilterMode, cuTexRefGetFlags, cuTexRefGetFormat,
    cuTexRefGetMaxAnisotropy, cuTexRefGetMipmapFilterMode, cuTexRefGetMipmapLevelBias,
    cuTexRefGetMipmapLevelClamp, cuTexRefGetMipmappedArray, cuTexRefSetAddress2D_v3,
    cuTexRefSetAddressMode, cuTexRefSetAddress_v2, cuTexRefSetArray, cuTexRefSetBorderColor,
    cuTexRefSetFilterMode, cuTexRefSetFlags, cuTexRefSetFormat, cuTexRefSetMaxAnisotropy,
    cuTexRefSetMipmapFilterMode, cuTexRefSetMipmapLevelBias, cuTexRefSetMipmapLevelClamp,
    cuTexRefSetMipmappedArray, cuThreadExchangeStreamCaptureMode, cuUserObjectCreate, cuUserObjectRelease,
    cuUserObjectRetain, cuWaitExternalSemaphoresAsync,
}

/// The trampolines: functions for those of a real driver that the list above does not contain. 16 bytes of
/// code each.
#[unsafe(naked)]
unsafe extern "C" fn trampolines() {
    naked_asm!(
        ".set simgpu_trampoline, {first}",
        ".balign 16",
        ".rept {count}",
        "mov $simgpu_trampoline, %eax",
        "jmp simgpu_hook_entry",
        ".balign 16",
        ".set simgpu_trampoline, simgpu_trampoline + 1",
        ".endr",
        first = const MATMUL_INDEX + 1,
        count = const TRAMPOLINE_COUNT,
        options(att_syntax),
    )
}

/// Returns the address of the trampoline with this number.
pub(crate) fn trampoline(index: usize) -> Option<usize> {
    let position = index.checked_sub(MATMUL_INDEX + 1).filter(|position| *position < TRAMPOLINE_COUNT)?;
    Some((trampolines as *const () as usize).next_multiple_of(16) + position * 16)
}

/// Returns the address of an exported function.
pub(crate) fn exported_function(name: &str) -> Option<usize> {
    let index = NAMES[..EXPORTED.len()].binary_search(&name).ok()?;
    Some(EXPORTED[index] as *const () as usize)
}
