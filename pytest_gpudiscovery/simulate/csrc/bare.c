/* A CUDA library as somebody builds it who knows no version scripts and needs no libc: SIM_BARE names which one. It has
 * neither version definitions nor needs, so ld.so ends the process ("Inconsistency detected by ld.so ... check_match")
 * that looks for a versioned symbol of a library of its name and finds the name here. */
#define SIM_EXPORT __attribute__((visibility("default")))
#define STUB(name)            \
    SIM_EXPORT int name(void) \
    {                         \
        return 35;            \
    }

#if SIM_BARE == 1 /* libcudart */
STUB(cudaGetDeviceCount)
STUB(cudaGetDevice)
STUB(cudaSetDevice)
STUB(cudaDeviceReset)
STUB(cudaDriverGetVersion)
STUB(cudaRuntimeGetVersion)
STUB(cudaDeviceGetPCIBusId)
STUB(cudaGetLastError)
STUB(cudaGetErrorString)
STUB(cudaGetDeviceProperties)
STUB(cudaGetDeviceProperties_v2)
STUB(__cudaRegisterFatBinary)
STUB(__cudaRegisterFatBinaryEnd)
STUB(__cudaUnregisterFatBinary)
#endif
#if SIM_BARE == 1 || SIM_BARE == 2 /* 2: a shim for libcudart that stands before one function */
STUB(cudaMemGetInfo)
#elif SIM_BARE == 3 /* libcublas */
STUB(cublasCreate_v2)
STUB(cublasDestroy_v2)
STUB(cublasGetVersion_v2)
#elif SIM_BARE == 4 /* libcublasLt */
STUB(cublasLtCreate)
STUB(cublasLtDestroy)
#endif
