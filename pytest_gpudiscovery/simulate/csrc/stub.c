/* The toolkit's stub libcuda: a library to link against. Every function answers 34, CUDA_ERROR_STUB_LIBRARY. */
#define SIM_EXPORT __attribute__((visibility("default")))

#define STUB(name)            \
    SIM_EXPORT int name(void) \
    {                         \
        return 34;            \
    }

STUB(cuInit)
STUB(cuDriverGetVersion)
STUB(cuDeviceGetCount)
STUB(cuDeviceGet)
STUB(cuDeviceGetName)
STUB(cuDeviceGetUuid)
STUB(cuDeviceGetUuid_v2)
STUB(cuDeviceTotalMem_v2)
STUB(cuDeviceGetAttribute)
STUB(cuDeviceGetPCIBusId)
STUB(cuDeviceGetByPCIBusId)
STUB(cuDevicePrimaryCtxRetain)
STUB(cuDevicePrimaryCtxRelease_v2)
STUB(cuDevicePrimaryCtxGetState)
STUB(cuCtxCreate_v2)
STUB(cuCtxCreate_v3)
STUB(cuCtxDestroy_v2)
STUB(cuCtxSetCurrent)
STUB(cuCtxGetCurrent)
STUB(cuCtxSynchronize)
STUB(cuMemGetInfo_v2)
STUB(cuMemAlloc_v2)
STUB(cuMemFree_v2)
STUB(cuMemAllocManaged)
STUB(cuMemGetAllocationGranularity)
STUB(cuMemcpyHtoD_v2)
STUB(cuMemcpyDtoH_v2)
STUB(cuModuleLoadData)
STUB(cuModuleGetFunction)
STUB(cuModuleUnload)
STUB(cuLaunchKernel)
STUB(cuGetProcAddress)
STUB(cuGetProcAddress_v2)
STUB(cuGetErrorName)
STUB(cuGetErrorString)
