/* The CUDA runtime, major SIM_RUNTIME (12 or 13), on top of whatever dlopen("libcuda.so.1") finds, like the real one.
 * Every exported symbol has version libcudart.so.SIM_RUNTIME (cudart.map). */
#define _GNU_SOURCE
#include "modules.h"
#include "sim.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef SIM_RUNTIME
#error "SIM_RUNTIME: 12 or 13"
#endif

enum { OK = 0, INVALID_VALUE = 1, INSUFFICIENT_DRIVER = 35, NO_DEVICE = 100, INVALID_DEVICE = 101 };

static __thread int last_error, chosen;
static void *driver;

static int keep(int code)
{
    if (code)
        last_error = code;
    return code;
}

#define CALL(name, type, ...)                                                       \
    do {                                                                            \
        int (*function) type = driver ? (int (*) type)dlsym(driver, name) : NULL;   \
        int code_of = function ? function(__VA_ARGS__) : INSUFFICIENT_DRIVER;       \
        if (code_of)                                                                \
            return keep(code_of);                                                   \
    } while (0)

static int version_of_driver(int *version)
{
    *version = 0;
    CALL("cuDriverGetVersion", (int *), version);
    return OK;
}

/* libcuda is opened at the first call that needs it. A missing driver and one of an older major are both 35. */
static int ready(void)
{
    int version;

    if (!driver && !(driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)))
        return keep(INSUFFICIENT_DRIVER);
    CALL("cuInit", (unsigned), 0);
    if (version_of_driver(&version) || version / 1000 < SIM_RUNTIME)
        return keep(INSUFFICIENT_DRIVER);
    load_modules_now(driver);
    return OK;
}

#define NEED_DRIVER             \
    do {                        \
        int code_ready = ready(); \
        if (code_ready)         \
            return code_ready;  \
    } while (0)

SIM_EXPORT int cudaRuntimeGetVersion(int *version)
{
    SIM_GATE("cudaRuntimeGetVersion");
    *version = (int)sim_number(SIM_RUNTIME * 1000, "runtime.%d", SIM_RUNTIME);
    return OK;
}

SIM_EXPORT int cudaDriverGetVersion(int *version)
{
    SIM_GATE("cudaDriverGetVersion");
    *version = 0; /* 0 and success where there is no driver */
    if (driver || (driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)))
        return version_of_driver(version);
    return OK;
}

SIM_EXPORT int cudaGetDeviceCount(int *count)
{
    SIM_GATE("cudaGetDeviceCount");
    *count = 0;
    NEED_DRIVER;
    CALL("cuDeviceGetCount", (int *), count);
    return *count ? OK : keep(NO_DEVICE);
}

static int attribute(int device, int number, int *value)
{
    CALL("cuDeviceGetAttribute", (int *, int, int), value, number, device);
    return OK;
}

SIM_EXPORT int cudaDeviceGetAttribute(int *value, int number, int device)
{
    SIM_GATE("cudaDeviceGetAttribute");
    NEED_DRIVER;
    return attribute(device, number, value);
}

SIM_EXPORT int cudaDeviceGetPCIBusId(char *text, int room, int device)
{
    SIM_GATE("cudaDeviceGetPCIBusId");
    NEED_DRIVER;
    CALL("cuDeviceGetPCIBusId", (char *, int, int), text, room, device);
    return OK;
}

SIM_EXPORT int cudaSetDevice(int device)
{
    int count;

    SIM_GATE("cudaSetDevice");
    NEED_DRIVER;
    CALL("cuDeviceGetCount", (int *), &count);
    if (device < 0 || device >= count)
        return keep(INVALID_DEVICE);
    chosen = device;
    return OK;
}

SIM_EXPORT int cudaGetDevice(int *device)
{
    SIM_GATE("cudaGetDevice");
    *device = chosen;
    return OK;
}

SIM_EXPORT int cudaDeviceReset(void)
{
    SIM_GATE("cudaDeviceReset");
    return OK;
}

SIM_EXPORT int cudaMemGetInfo(size_t *available, size_t *total)
{
    void *context;

    SIM_GATE("cudaMemGetInfo");
    NEED_DRIVER;
    CALL("cuDevicePrimaryCtxRetain", (void **, int), &context, chosen);
    CALL("cuCtxSetCurrent", (void *), context);
    CALL("cuMemGetInfo_v2", (size_t *, size_t *), available, total);
    return OK;
}

/* --- device properties --------------------------------------------------------------------------------------------- */

/* Offsets of struct cudaDeviceProp in CUDA 12 and 13 (-1: not there) and the device attribute that fills the field.
 * name, uuid, luid and totalGlobalMem (0, 256, 272, 288) are the same in both. */
static const struct field {
    short offset12, offset13, attribute, bytes;
} fields[] = {
    {296, 296, 8, 8},    {304, 304, 12, 4},  {308, 308, 10, 4},  {312, 312, 11, 8},   {320, 320, 1, 4},
    {324, 324, 2, 4},    {328, 328, 3, 4},   {332, 332, 4, 4},   {336, 336, 5, 4},    {340, 340, 6, 4},
    {344, 344, 7, 4},    {348, -1, 13, 4},   {352, 352, 9, 8},   {360, 360, 75, 4},   {364, 364, 76, 4},
    {368, 368, 14, 8},   {376, 376, 51, 8},  {384, -1, 15, 4},   {388, 384, 16, 4},   {392, -1, 17, 4},
    {396, 388, 18, 4},   {400, 392, 19, 4},  {404, -1, 20, 4},   {408, 396, 21, 4},   {412, 400, 77, 4},   {416, -1, 69, 4},
    {420, 404, 22, 4},   {424, 408, 23, 4},  {568, 552, 30, 8},  {576, 560, 31, 4},   {580, 564, 32, 4},
    {584, 568, 33, 4},   {588, 572, 34, 4},  {592, 576, 50, 4},  {596, 580, 35, 4},   {600, 584, 40, 4},
    {604, 588, 41, 4},   {608, -1, 36, 4},   {612, 592, 37, 4},  {616, 596, 38, 4},   {620, 600, 108, 4},
    {624, 604, 39, 4},   {628, 608, 78, 4},  {632, 612, 79, 4},  {636, 616, 80, 4},   {640, 624, 81, 8},
    {648, 632, 82, 4},   {652, 636, 83, 4},  {656, 640, 84, 4},  {660, 644, 85, 4},   {664, 648, 86, 4},
    {668, -1, 87, 4},    {672, 652, 88, 4},  {676, 656, 89, 4},  {680, 660, 90, 4},   {684, 664, 91, 4},
    {688, 668, 95, 4},   {692, -1, 96, 4},   {696, 672, 97, 8},  {704, 680, 100, 4},  {708, 684, 101, 4},
    {712, 688, 106, 4},  {716, 692, 109, 4}, {720, 696, 111, 8}, {728, 704, 99, 4},   {732, 708, 112, 4},
    {736, 712, 113, 4},  {740, 716, 114, 4}, {744, 720, 115, 4}, {748, 724, 116, 4},  {752, 728, 117, 4},
    {756, 732, 118, 4},  {760, 736, 119, 4}, {764, 740, 121, 4}, {768, 744, 125, 4},  {772, 748, 120, 4},
    {776, 752, 129, 4},  {-1, 756, 130, 4},  {-1, 760, 131, 4},  {-1, 764, 133, 4},   {-1, 768, 134, 4},
    {-1, 772, 139, 4},   {-1, 776, 140, 4},  {-1, 780, 143, 4},
};

/* The limits of textures and surfaces: consecutive ints from offset 428 (CUDA 12) or 412 (CUDA 13) on. */
static const unsigned char limits[] = {73, 74, 70, 71, 72, 45, 46, 24, 25, 26, 47, 48, 49, 52, 42, 43, 27, 28,
                                       29, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68};

/* How much is written: the reserved words at the end are left as they are, as the real runtime does. */
enum { SIZE_V1 = 728, SIZE_12 = 780, SIZE_13 = 784 };

/* Fill SIZE bytes at TO in the layout of CUDA LAYOUT (12, 13); another number leaves what was there, with code 0. */
static int properties(char *to, int device, int layout, size_t size)
{
    size_t index, memory;
    int offset, value, code;
    int64_t wide;

    if (layout != 12 && layout != 13)
        return OK;
    memset(to, 0, size);
    CALL("cuDeviceGetName", (char *, int, int), to, 256, device);
    CALL("cuDeviceGetUuid_v2", (void *, int), to + 256, device);
    CALL("cuDeviceTotalMem_v2", (size_t *, int), &memory, device);
    memcpy(to + 288, &memory, sizeof memory);
    for (index = 0; index < sizeof fields / sizeof *fields; index++) {
        offset = layout == 12 ? fields[index].offset12 : fields[index].offset13;
        if (offset < 0 || (size_t)(offset + fields[index].bytes) > size)
            continue;
        if ((code = attribute(device, fields[index].attribute, &value)))
            continue; /* an attribute that this driver does not know stays 0 */
        wide = value;
        memcpy(to + offset, &wide, (size_t)fields[index].bytes); /* little-endian */
    }
    offset = layout == 12 ? 428 : 412;
    for (index = 0; index < sizeof limits; index++, offset += 4)
        if (!attribute(device, limits[index], &value))
            memcpy(to + offset, &value, sizeof value);
    return OK;
}

SIM_EXPORT int cudaGetDeviceProperties(char *to, int device)
{
    int layout = (int)sim_number(SIM_RUNTIME, "runtime.layout");

    SIM_GATE("cudaGetDeviceProperties");
    NEED_DRIVER;
    return properties(to, device, layout, SIM_RUNTIME == 12 ? SIZE_V1 : SIZE_13);
}

#if SIM_RUNTIME == 12
SIM_EXPORT int cudaGetDeviceProperties_v2(char *to, int device)
{
    int layout = (int)sim_number(SIM_RUNTIME, "runtime.layout");

    SIM_GATE("cudaGetDeviceProperties");
    NEED_DRIVER;
    return properties(to, device, layout, SIZE_12);
}
#endif

/* --- errors -------------------------------------------------------------------------------------------------------- */

SIM_EXPORT int cudaGetLastError(void)
{
    int code = last_error;

    last_error = OK;
    return code;
}

SIM_EXPORT int cudaPeekAtLastError(void)
{
    return last_error;
}

/* The runtime's own names; the texts of shared codes are the driver's. */
static const struct {
    int code;
    const char *name;
} names[] = {
    {0, "cudaSuccess"},
    {1, "cudaErrorInvalidValue"},
    {2, "cudaErrorMemoryAllocation"},
    {3, "cudaErrorInitializationError"},
    {34, "cudaErrorStubLibrary"},
    {35, "cudaErrorInsufficientDriver"},
    {36, "cudaErrorCallRequiresNewerDriver"},
    {46, "cudaErrorDevicesUnavailable"},
    {100, "cudaErrorNoDevice"},
    {101, "cudaErrorInvalidDevice"},
    {209, "cudaErrorNoKernelImageForDevice"},
    {214, "cudaErrorECCUncorrectable"},
    {304, "cudaErrorOperatingSystem"},
    {800, "cudaErrorNotPermitted"},
    {801, "cudaErrorNotSupported"},
    {802, "cudaErrorSystemNotReady"},
    {803, "cudaErrorSystemDriverMismatch"},
    {804, "cudaErrorCompatNotSupportedOnDevice"},
    {805, "cudaErrorMpsConnectionFailed"},
    {999, "cudaErrorUnknown"},
};

static const struct {
    int code;
    const char *name, *text;
} texts[] = {
    {35, "", "CUDA driver version is insufficient for CUDA runtime version"},
#define SIM_ERROR(code, name, text) {code, name, text},
#include "errors.h"
};

SIM_EXPORT const char *cudaGetErrorName(int code)
{
    size_t index;

    for (index = 0; index < sizeof names / sizeof *names; index++)
        if (names[index].code == code)
            return names[index].name;
    return "unrecognized error code";
}

SIM_EXPORT const char *cudaGetErrorString(int code)
{
    size_t index;

    for (index = 0; index < sizeof texts / sizeof *texts; index++)
        if (texts[index].code == code)
            return texts[index].text;
    return "unrecognized error code";
}
