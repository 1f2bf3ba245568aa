/* The two halves of the simulated libggml-cuda: devices (ggml_cuda_devices.c) and the registry (ggml_cuda.c). */
#ifndef GGML_CUDA_H
#define GGML_CUDA_H

#include "ggml.h"

struct gpu {
    int ordinal, cc_major, cc_minor, driver_major, driver_minor, integrated;
    char name[16], description[256], id[64], pci[32];
    struct buffer_type buffers;
    union {
        struct device_b b;
        struct device_c c;
    } device;
};

/* Find the devices as ggml_cuda_init does, with its lines on stderr; returns how many, at most ROOM. Ends the process
 * where ggml does. */
int ggml_cuda_find(struct gpu *found, int room);
/* What the library was compiled for: "500,520,900". */
const char *ggml_cuda_architectures(void);
void ggml_cuda_check(int code, const char *statement, const char *function, int line);
#define CUDA_CHECK(call) ggml_cuda_check(call, #call, __func__, __LINE__)

/* The CUDA runtime and driver API, as far as it is used. */
int cudaGetDeviceCount(int *);
int cudaGetDevice(int *);
int cudaSetDevice(int);
int cudaDeviceReset(void);
int cudaDriverGetVersion(int *);
int cudaDeviceGetPCIBusId(char *, int, int);
int cudaMemGetInfo(size_t *, size_t *);
int cudaGetLastError(void);
const char *cudaGetErrorString(int);
#if SIM_CUDA == 12
int cudaGetDeviceProperties_v2(void *, int); /* its name in CUDA 12's headers */
#define cudaGetDeviceProperties cudaGetDeviceProperties_v2
#else
int cudaGetDeviceProperties(void *, int);
#endif
void **__cudaRegisterFatBinary(void *);
void __cudaRegisterFatBinaryEnd(void **);
void __cudaUnregisterFatBinary(void **);
int cublasCreate_v2(void **);
int cuDeviceGet(int *, int);
int cuDeviceGetAttribute(int *, int, int);
int cuGetErrorString(int, const char **);
int cuMemGetAllocationGranularity(size_t *, const void *, int);
int cuMemAddressReserve(uintptr_t *, size_t, size_t, uintptr_t, uint64_t);
int cuMemAddressFree(uintptr_t, size_t);
int cuMemCreate(uint64_t *, size_t, const void *, uint64_t);
int cuMemMap(uintptr_t, size_t, size_t, uint64_t, uint64_t);
int cuMemUnmap(uintptr_t, size_t);
int cuMemSetAccess(uintptr_t, size_t, const void *, size_t);
int cuMemRelease(uint64_t);

#endif
