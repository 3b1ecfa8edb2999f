//! Exports the functions of NVML that `nvml` does not implement, so that a program that looks them up finds
//! them. Each of them jumps to `simgpu_hook_entry`. They go on to the real NVML if there is one; the simulation
//! has none of them. Unsafe: naked functions from a macro. The list is that of driver 580.159.04. Must not know
//! what any function does.

use std::arch::naked_asm;

use crate::symbols::FUNCTION_COUNT;

macro_rules! exports {
    ($($name:ident,)*) => {
        #[expect(non_camel_case_types, reason = "NVML's own names")]
        #[repr(u32)]
        enum NvmlSymbol { $($name,)* }

        const NAMES: &[&str] = &[$(stringify!($name),)*];

        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name() {
                naked_asm!(
                    "mov eax, {index}",
                    "jmp simgpu_hook_entry",
                    index = const NvmlSymbol::$name as u32 + FUNCTION_COUNT as u32,
                )
            }
        )*
    };
}

/// Returns the name of the function with this number at `simgpu_hook_entry`, or `None` if the number is that of
/// a function of the driver.
#[inline]
pub(crate) fn exported_name(index: usize) -> Option<&'static str> {
    NAMES.get(index.checked_sub(FUNCTION_COUNT)?).copied()
}

exports! {
    nvmlComputeInstanceDestroy, nvmlComputeInstanceGetInfo, nvmlComputeInstanceGetInfo_v2,
    nvmlDeviceClearAccountingPids, nvmlDeviceClearCpuAffinity, nvmlDeviceClearEccErrorCounts,
    nvmlDeviceClearFieldValues, nvmlDeviceCreateGpuInstance, nvmlDeviceCreateGpuInstanceWithPlacement,
    nvmlDeviceDiscoverGpus, nvmlDeviceFreezeNvLinkUtilizationCounter, nvmlDeviceGetAPIRestriction,
    nvmlDeviceGetAccountingBufferSize, nvmlDeviceGetAccountingMode, nvmlDeviceGetAccountingPids,
    nvmlDeviceGetAccountingStats, nvmlDeviceGetActiveVgpus, nvmlDeviceGetAdaptiveClockInfoStatus,
    nvmlDeviceGetAddressingMode, nvmlDeviceGetApplicationsClock, nvmlDeviceGetArchitecture,
    nvmlDeviceGetAttributes, nvmlDeviceGetAttributes_v2, nvmlDeviceGetAutoBoostedClocksEnabled,
    nvmlDeviceGetBAR1MemoryInfo, nvmlDeviceGetBoardId, nvmlDeviceGetBoardPartNumber, nvmlDeviceGetBrand,
    nvmlDeviceGetBridgeChipInfo, nvmlDeviceGetBusType, nvmlDeviceGetC2cModeInfoV,
    nvmlDeviceGetCapabilities, nvmlDeviceGetClkMonStatus, nvmlDeviceGetClock, nvmlDeviceGetClockInfo,
    nvmlDeviceGetClockOffsets, nvmlDeviceGetComputeInstanceId, nvmlDeviceGetComputeMode,
    nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetComputeRunningProcesses_v2,
    nvmlDeviceGetComputeRunningProcesses_v3, nvmlDeviceGetConfComputeGpuAttestationReport,
    nvmlDeviceGetConfComputeGpuCertificate, nvmlDeviceGetConfComputeMemSizeInfo,
    nvmlDeviceGetConfComputeProtectedMemoryUsage, nvmlDeviceGetCoolerInfo, nvmlDeviceGetCount,
    nvmlDeviceGetCpuAffinity, nvmlDeviceGetCpuAffinityWithinScope, nvmlDeviceGetCreatableVgpus,
    nvmlDeviceGetCurrPcieLinkGeneration, nvmlDeviceGetCurrPcieLinkWidth, nvmlDeviceGetCurrentClockFreqs,
    nvmlDeviceGetDecoderUtilization, nvmlDeviceGetDefaultApplicationsClock, nvmlDeviceGetDefaultEccMode,
    nvmlDeviceGetDetailedEccErrors, nvmlDeviceGetDeviceHandleFromMigDeviceHandle,
    nvmlDeviceGetDisplayActive, nvmlDeviceGetDisplayMode, nvmlDeviceGetDramEncryptionMode,
    nvmlDeviceGetDriverModel, nvmlDeviceGetDriverModel_v2, nvmlDeviceGetDynamicPstatesInfo,
    nvmlDeviceGetEncoderCapacity, nvmlDeviceGetEncoderSessions, nvmlDeviceGetEncoderStats,
    nvmlDeviceGetEncoderUtilization, nvmlDeviceGetFBCSessions, nvmlDeviceGetFBCStats,
    nvmlDeviceGetFanControlPolicy_v2, nvmlDeviceGetFanSpeed, nvmlDeviceGetFanSpeedRPM,
    nvmlDeviceGetFanSpeed_v2, nvmlDeviceGetFieldValues, nvmlDeviceGetGpcClkMinMaxVfOffset,
    nvmlDeviceGetGpcClkVfOffset, nvmlDeviceGetGpuFabricInfo, nvmlDeviceGetGpuFabricInfoV,
    nvmlDeviceGetGpuInstanceById, nvmlDeviceGetGpuInstanceId, nvmlDeviceGetGpuInstancePossiblePlacements,
    nvmlDeviceGetGpuInstancePossiblePlacements_v2, nvmlDeviceGetGpuInstanceProfileInfo,
    nvmlDeviceGetGpuInstanceProfileInfoByIdV, nvmlDeviceGetGpuInstanceProfileInfoV,
    nvmlDeviceGetGpuInstanceRemainingCapacity, nvmlDeviceGetGpuInstances,
    nvmlDeviceGetGpuMaxPcieLinkGeneration, nvmlDeviceGetGpuOperationMode,
    nvmlDeviceGetGraphicsRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses_v2,
    nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlDeviceGetGridLicensableFeatures,
    nvmlDeviceGetGridLicensableFeatures_v2, nvmlDeviceGetGridLicensableFeatures_v3,
    nvmlDeviceGetGridLicensableFeatures_v4, nvmlDeviceGetGspFirmwareMode, nvmlDeviceGetGspFirmwareVersion,
    nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByPciBusId, nvmlDeviceGetHandleBySerial,
    nvmlDeviceGetHandleByUUIDV, nvmlDeviceGetHostVgpuMode, nvmlDeviceGetHostname_v1,
    nvmlDeviceGetInforomConfigurationChecksum, nvmlDeviceGetInforomImageVersion,
    nvmlDeviceGetInforomVersion, nvmlDeviceGetIrqNum, nvmlDeviceGetJpgUtilization,
    nvmlDeviceGetLastBBXFlushTime, nvmlDeviceGetMPSComputeRunningProcesses,
    nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlDeviceGetMPSComputeRunningProcesses_v3,
    nvmlDeviceGetMarginTemperature, nvmlDeviceGetMaxClockInfo, nvmlDeviceGetMaxCustomerBoostClock,
    nvmlDeviceGetMaxMigDeviceCount, nvmlDeviceGetMaxPcieLinkGeneration, nvmlDeviceGetMaxPcieLinkWidth,
    nvmlDeviceGetMemClkMinMaxVfOffset, nvmlDeviceGetMemClkVfOffset, nvmlDeviceGetMemoryAffinity,
    nvmlDeviceGetMemoryBusWidth, nvmlDeviceGetMigDeviceHandleByIndex, nvmlDeviceGetMigMode,
    nvmlDeviceGetMinMaxClockOfPState, nvmlDeviceGetMinMaxFanSpeed, nvmlDeviceGetMinorNumber,
    nvmlDeviceGetModuleId, nvmlDeviceGetMultiGpuBoard, nvmlDeviceGetNumFans, nvmlDeviceGetNumGpuCores,
    nvmlDeviceGetNumaNodeId, nvmlDeviceGetNvLinkCapability, nvmlDeviceGetNvLinkErrorCounter,
    nvmlDeviceGetNvLinkInfo, nvmlDeviceGetNvLinkRemoteDeviceType, nvmlDeviceGetNvLinkRemotePciInfo,
    nvmlDeviceGetNvLinkRemotePciInfo_v2, nvmlDeviceGetNvLinkState, nvmlDeviceGetNvLinkUtilizationControl,
    nvmlDeviceGetNvLinkUtilizationCounter, nvmlDeviceGetNvLinkVersion, nvmlDeviceGetNvlinkBwMode,
    nvmlDeviceGetNvlinkSupportedBwModes, nvmlDeviceGetOfaUtilization, nvmlDeviceGetP2PStatus,
    nvmlDeviceGetPciInfo, nvmlDeviceGetPciInfoExt, nvmlDeviceGetPciInfo_v2, nvmlDeviceGetPcieLinkMaxSpeed,
    nvmlDeviceGetPcieReplayCounter, nvmlDeviceGetPcieSpeed, nvmlDeviceGetPcieThroughput, nvmlDeviceGetPdi,
    nvmlDeviceGetPerformanceModes, nvmlDeviceGetPerformanceState, nvmlDeviceGetPersistenceMode,
    nvmlDeviceGetPgpuMetadataString, nvmlDeviceGetPlatformInfo, nvmlDeviceGetPowerManagementDefaultLimit,
    nvmlDeviceGetPowerManagementLimitConstraints, nvmlDeviceGetPowerManagementMode,
    nvmlDeviceGetPowerMizerMode_v1, nvmlDeviceGetPowerSource, nvmlDeviceGetPowerState,
    nvmlDeviceGetProcessUtilization, nvmlDeviceGetProcessesUtilizationInfo, nvmlDeviceGetRemappedRows,
    nvmlDeviceGetRemappedRows_v2, nvmlDeviceGetRepairStatus, nvmlDeviceGetRetiredPages,
    nvmlDeviceGetRetiredPagesPendingStatus, nvmlDeviceGetRetiredPages_v2,
    nvmlDeviceGetRowRemapperHistogram, nvmlDeviceGetRunningProcessDetailList, nvmlDeviceGetSamples,
    nvmlDeviceGetSerial, nvmlDeviceGetSramEccErrorStatus,
    nvmlDeviceGetSramUniqueUncorrectedEccErrorCounts, nvmlDeviceGetSupportedClocksEventReasons,
    nvmlDeviceGetSupportedGraphicsClocks, nvmlDeviceGetSupportedMemoryClocks,
    nvmlDeviceGetSupportedPerformanceStates, nvmlDeviceGetSupportedVgpus, nvmlDeviceGetTargetFanSpeed,
    nvmlDeviceGetTemperatureThreshold, nvmlDeviceGetTemperatureV, nvmlDeviceGetThermalSettings,
    nvmlDeviceGetTopologyCommonAncestor, nvmlDeviceGetTopologyNearestGpus,
    nvmlDeviceGetTotalEnergyConsumption, nvmlDeviceGetUnrepairableMemoryFlag_v1,
    nvmlDeviceGetVbiosVersion, nvmlDeviceGetVgpuCapabilities, nvmlDeviceGetVgpuHeterogeneousMode,
    nvmlDeviceGetVgpuInstancesUtilizationInfo, nvmlDeviceGetVgpuMetadata,
    nvmlDeviceGetVgpuProcessUtilization, nvmlDeviceGetVgpuProcessesUtilizationInfo,
    nvmlDeviceGetVgpuSchedulerCapabilities, nvmlDeviceGetVgpuSchedulerLog,
    nvmlDeviceGetVgpuSchedulerState, nvmlDeviceGetVgpuTypeCreatablePlacements,
    nvmlDeviceGetVgpuTypeSupportedPlacements, nvmlDeviceGetVgpuUtilization, nvmlDeviceGetViolationStatus,
    nvmlDeviceGetVirtualizationMode, nvmlDeviceIsMigDeviceHandle, nvmlDeviceModifyDrainState,
    nvmlDeviceOnSameBoard, nvmlDevicePowerSmoothingActivatePresetProfile,
    nvmlDevicePowerSmoothingSetState, nvmlDevicePowerSmoothingUpdatePresetProfileParam,
    nvmlDeviceQueryDrainState, nvmlDeviceReadPRMCounters_v1, nvmlDeviceReadWritePRM_v1,
    nvmlDeviceRemoveGpu, nvmlDeviceRemoveGpu_v2, nvmlDeviceResetApplicationsClocks,
    nvmlDeviceResetGpuLockedClocks, nvmlDeviceResetMemoryLockedClocks, nvmlDeviceResetNvLinkErrorCounters,
    nvmlDeviceResetNvLinkUtilizationCounter, nvmlDeviceSetAPIRestriction, nvmlDeviceSetAccountingMode,
    nvmlDeviceSetApplicationsClocks, nvmlDeviceSetAutoBoostedClocksEnabled, nvmlDeviceSetClockOffsets,
    nvmlDeviceSetComputeMode, nvmlDeviceSetConfComputeUnprotectedMemSize, nvmlDeviceSetCpuAffinity,
    nvmlDeviceSetDefaultAutoBoostedClocksEnabled, nvmlDeviceSetDefaultFanSpeed_v2,
    nvmlDeviceSetDramEncryptionMode, nvmlDeviceSetDriverModel, nvmlDeviceSetEccMode,
    nvmlDeviceSetFanControlPolicy, nvmlDeviceSetFanSpeed_v2, nvmlDeviceSetGpcClkVfOffset,
    nvmlDeviceSetGpuLockedClocks, nvmlDeviceSetGpuOperationMode, nvmlDeviceSetHostname_v1,
    nvmlDeviceSetMemClkVfOffset, nvmlDeviceSetMemoryLockedClocks, nvmlDeviceSetMigMode,
    nvmlDeviceSetNvLinkDeviceLowPowerThreshold, nvmlDeviceSetNvLinkUtilizationControl,
    nvmlDeviceSetNvlinkBwMode, nvmlDeviceSetPersistenceMode, nvmlDeviceSetPowerManagementLimit,
    nvmlDeviceSetPowerManagementLimit_v2, nvmlDeviceSetPowerMizerMode_v1,
    nvmlDeviceSetTemperatureThreshold, nvmlDeviceSetVgpuCapabilities, nvmlDeviceSetVgpuHeterogeneousMode,
    nvmlDeviceSetVgpuSchedulerState, nvmlDeviceSetVirtualizationMode, nvmlDeviceValidateInforom,
    nvmlDeviceWorkloadPowerProfileClearRequestedProfiles,
    nvmlDeviceWorkloadPowerProfileGetCurrentProfiles, nvmlDeviceWorkloadPowerProfileGetProfilesInfo,
    nvmlDeviceWorkloadPowerProfileSetRequestedProfiles, nvmlEventSetWait, nvmlGetBlacklistDeviceCount,
    nvmlGetBlacklistDeviceInfoByIndex, nvmlGetExcludedDeviceCount, nvmlGetExcludedDeviceInfoByIndex,
    nvmlGetVgpuCompatibility, nvmlGetVgpuDriverCapabilities, nvmlGetVgpuVersion, nvmlGpmMetricsGet,
    nvmlGpmMigSampleGet, nvmlGpmQueryDeviceSupport, nvmlGpmQueryIfStreamingEnabled, nvmlGpmSampleAlloc,
    nvmlGpmSampleFree, nvmlGpmSampleGet, nvmlGpmSetStreamingEnabled, nvmlGpuInstanceCreateComputeInstance,
    nvmlGpuInstanceCreateComputeInstanceWithPlacement, nvmlGpuInstanceDestroy,
    nvmlGpuInstanceGetActiveVgpus, nvmlGpuInstanceGetComputeInstanceById,
    nvmlGpuInstanceGetComputeInstancePossiblePlacements, nvmlGpuInstanceGetComputeInstanceProfileInfo,
    nvmlGpuInstanceGetComputeInstanceProfileInfoV, nvmlGpuInstanceGetComputeInstanceRemainingCapacity,
    nvmlGpuInstanceGetComputeInstances, nvmlGpuInstanceGetCreatableVgpus, nvmlGpuInstanceGetInfo,
    nvmlGpuInstanceGetVgpuHeterogeneousMode, nvmlGpuInstanceGetVgpuSchedulerLog,
    nvmlGpuInstanceGetVgpuSchedulerState, nvmlGpuInstanceGetVgpuTypeCreatablePlacements,
    nvmlGpuInstanceSetVgpuHeterogeneousMode, nvmlGpuInstanceSetVgpuSchedulerState, nvmlInit,
    nvmlInternalGetExportTable, nvmlSetVgpuVersion, nvmlSystemEventSetCreate, nvmlSystemEventSetFree,
    nvmlSystemEventSetWait, nvmlSystemGetConfComputeCapabilities, nvmlSystemGetConfComputeGpusReadyState,
    nvmlSystemGetConfComputeKeyRotationThresholdInfo, nvmlSystemGetConfComputeSettings,
    nvmlSystemGetConfComputeState, nvmlSystemGetDriverBranch, nvmlSystemGetHicVersion,
    nvmlSystemGetNvlinkBwMode, nvmlSystemGetProcessName, nvmlSystemGetTopologyGpuSet,
    nvmlSystemRegisterEvents, nvmlSystemSetConfComputeGpusReadyState,
    nvmlSystemSetConfComputeKeyRotationThresholdInfo, nvmlSystemSetNvlinkBwMode, nvmlUnitGetCount,
    nvmlUnitGetDevices, nvmlUnitGetFanSpeedInfo, nvmlUnitGetHandleByIndex, nvmlUnitGetLedState,
    nvmlUnitGetPsuInfo, nvmlUnitGetTemperature, nvmlUnitGetUnitInfo, nvmlUnitSetLedState,
    nvmlVgpuInstanceClearAccountingPids, nvmlVgpuInstanceGetAccountingMode,
    nvmlVgpuInstanceGetAccountingPids, nvmlVgpuInstanceGetAccountingStats, nvmlVgpuInstanceGetEccMode,
    nvmlVgpuInstanceGetEncoderCapacity, nvmlVgpuInstanceGetEncoderSessions,
    nvmlVgpuInstanceGetEncoderStats, nvmlVgpuInstanceGetFBCSessions, nvmlVgpuInstanceGetFBCStats,
    nvmlVgpuInstanceGetFbUsage, nvmlVgpuInstanceGetFrameRateLimit, nvmlVgpuInstanceGetGpuInstanceId,
    nvmlVgpuInstanceGetGpuPciId, nvmlVgpuInstanceGetLicenseInfo, nvmlVgpuInstanceGetLicenseInfo_v2,
    nvmlVgpuInstanceGetLicenseStatus, nvmlVgpuInstanceGetMdevUUID, nvmlVgpuInstanceGetMetadata,
    nvmlVgpuInstanceGetPlacementId, nvmlVgpuInstanceGetRuntimeStateSize, nvmlVgpuInstanceGetType,
    nvmlVgpuInstanceGetUUID, nvmlVgpuInstanceGetVmDriverVersion, nvmlVgpuInstanceGetVmID,
    nvmlVgpuInstanceSetEncoderCapacity, nvmlVgpuTypeGetBAR1Info, nvmlVgpuTypeGetCapabilities,
    nvmlVgpuTypeGetClass, nvmlVgpuTypeGetDeviceID, nvmlVgpuTypeGetFbReservation,
    nvmlVgpuTypeGetFrameRateLimit, nvmlVgpuTypeGetFramebufferSize, nvmlVgpuTypeGetGpuInstanceProfileId,
    nvmlVgpuTypeGetGspHeapSize, nvmlVgpuTypeGetLicense, nvmlVgpuTypeGetMaxInstances,
    nvmlVgpuTypeGetMaxInstancesPerGpuInstance, nvmlVgpuTypeGetMaxInstancesPerVm, nvmlVgpuTypeGetName,
    nvmlVgpuTypeGetNumDisplayHeads, nvmlVgpuTypeGetResolution,
}
