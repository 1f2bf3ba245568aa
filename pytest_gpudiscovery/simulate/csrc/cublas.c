/* libcublas of CUDA SIM_CUDA: a handle from libcublasLt, and device code that nobody runs. */
#include "fatbin.h"
#include "sim.h"

SIM_ROOM(code, 8 * 1024);

int cublasLtCreate(void **handle);
int cublasLtDestroy(void *handle);

SIM_EXPORT int cublasCreate_v2(void **handle)
{
    SIM_GATE("cublasCreate");
    return cublasLtCreate(handle);
}

SIM_EXPORT int cublasDestroy_v2(void *handle)
{
    return cublasLtDestroy(handle);
}

SIM_EXPORT int cublasGetVersion_v2(void *handle, int *version)
{
    (void)handle;
    *version = SIM_CUDA * 10000;
    return 0;
}
