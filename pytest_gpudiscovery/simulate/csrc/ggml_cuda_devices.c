/* ggml_cuda_init: v0.16.3:ml/backend/ggml/ggml/src/ggml-cuda/ggml-cuda.cu:242 for layout b (Ollama's own: the UUIDs and
 * the check of the compiled architectures under GGML_CUDA_INIT), ggml 0.25.3 for layout c. */
#define _GNU_SOURCE
#include "ggml_cuda.h"
#include "fatbin.h"
#include "sim.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SOURCE "ggml/src/ggml-cuda/ggml-cuda.cu"
#define SAY(level, ...) ggml_log_internal(level, __VA_ARGS__)

/* struct cudaDeviceProp of the CUDA that this library was built for. */
#if SIM_CUDA == 12
enum { SIZE = 1032, INTEGRATED = 396, PCI_BUS = 584, PCI_DEVICE = 588, PCI_DOMAIN = 592 };
#else
enum { SIZE = 1008, INTEGRATED = 388, PCI_BUS = 568, PCI_DEVICE = 572, PCI_DOMAIN = 576 };
#endif
enum { UUID = 256, MEMORY = 288, MAJOR = 360, MINOR = 364 };
enum { ATTRIBUTE_VMM = 102 };

struct properties {
    char bytes[SIZE];
};

static int number(const struct properties *from, int offset)
{
    int value;

    memcpy(&value, from->bytes + offset, sizeof value);
    return value;
}

static size_t memory(const struct properties *from)
{
    size_t value;

    memcpy(&value, from->bytes + MEMORY, sizeof value);
    return value;
}

void ggml_cuda_check(int code, const char *statement, const char *function, int line)
{
    int device = -1;

    if (!code)
        return;
    cudaGetDevice(&device);
    SAY(LOG_ERROR, "CUDA error: %s\n", cudaGetErrorString(code));
    SAY(LOG_ERROR, "  current device: %d, in function %s at %s:%d\n", device, function, SOURCE, line);
    SAY(LOG_ERROR, "  %s\n", statement);
    ggml_abort(SOURCE, line, "CUDA error");
}

static void driver_check(int code, const char *statement, int line)
{
    const char *text = NULL;

    if (!code)
        return;
    cuGetErrorString(code, &text);
    SAY(LOG_ERROR, "CUDA error: %s\n  %s\n", text ? text : "", statement);
    ggml_abort(SOURCE, line, "CUDA error");
}
#define CU_CHECK(call) driver_check(call, #call, __LINE__)

/* --- what it was compiled for -------------------------------------------------------------------------------------- */

/* The list that nvcc's __CUDA_ARCH_LIST__ leaves among the constants; simulate/fatbin.py writes it. */
static const char architectures[256] = "\0SIM.ARCHITECTURES";

const char *ggml_cuda_architectures(void)
{
    const char *list = architectures;

    __asm__("" : "+r"(list)); /* what the compiler sees there is not what the file holds in the end */
    return list + 1;
}

static int has_architecture(int wanted)
{
    const char *at = ggml_cuda_architectures();
    char *end;

    while (*at) {
        if (strtol(at, &end, 10) == wanted)
            return 1;
        at = *end ? end + 1 : end;
    }
    return 0;
}

/* --- devices ------------------------------------------------------------------------------------------------------- */

static int has_memory_management(int ordinal)
{
    int device, found = 0;
    size_t granularity;
    char property[32] = {0};

    CU_CHECK(cuDeviceGet(&device, ordinal));
    CU_CHECK(cuDeviceGetAttribute(&found, ATTRIBUTE_VMM, device));
    if (found)
        CU_CHECK(cuMemGetAllocationGranularity(&granularity, property, 1));
    return found;
}

static void identify(struct gpu *gpu, const struct properties *from)
{
    const char *lie = sim_get("ggml.cuda.description");
    size_t used = 4;
    int index;

    snprintf(gpu->name, sizeof gpu->name, "CUDA%d", gpu->ordinal);
    snprintf(gpu->description, sizeof gpu->description, "%.255s", lie ? lie : from->bytes);
    strcpy(gpu->id, "GPU-");
    for (index = 0; index < 16; index++) {
        const char *dash = index == 4 || index == 6 || index == 8 || index == 10 ? "-" : "";

        used += (size_t)sprintf(gpu->id + used, "%s%02x", dash, (unsigned char)from->bytes[UUID + index]);
    }
    gpu->cc_major = number(from, MAJOR);
    gpu->cc_minor = number(from, MINOR);
    gpu->integrated = number(from, INTEGRATED);
    snprintf(gpu->pci, sizeof gpu->pci, "%04x:%02x:%02x.0", (unsigned)number(from, PCI_DOMAIN),
             (unsigned)number(from, PCI_BUS), (unsigned)number(from, PCI_DEVICE));
}

static void look_at(struct gpu *gpu)
{
    struct properties from = {{0}};
    int vmm = has_memory_management(gpu->ordinal), version = 0;

    CUDA_CHECK(cudaGetDeviceProperties(&from, gpu->ordinal));
    identify(gpu, &from);
#if SIM_LAYOUT == 'b'
    if (getenv("GGML_CUDA_INIT") && !has_architecture(100 * gpu->cc_major + 10 * gpu->cc_minor))
        ggml_abort(SOURCE, __LINE__, "GGML_ASSERT(%s) failed",
                   "ggml_cuda_has_arch(info.devices[id].cc) && \"ggml was not compiled with support for this arch\"");
    SAY(LOG_INFO, "  Device %d: %s, compute capability %d.%d, VMM: %s, ID: %s\n", gpu->ordinal, from.bytes,
        gpu->cc_major, gpu->cc_minor, vmm ? "yes" : "no", gpu->id);
#else
    CUDA_CHECK(cudaDeviceGetPCIBusId(gpu->pci, sizeof gpu->pci, gpu->ordinal));
    for (char *at = gpu->pci; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    SAY(LOG_INFO, "  Device %d: %s, compute capability %d.%d, VMM: %s, VRAM: %zu MiB\n", gpu->ordinal, from.bytes,
        gpu->cc_major, gpu->cc_minor, vmm ? "yes" : "no", memory(&from) >> 20);
    (void)has_architecture;
#endif
    CUDA_CHECK(cudaDriverGetVersion(&version));
    gpu->driver_major = version / 1000;
    gpu->driver_minor = version % 1000 / 10;
}

static void announce(int count)
{
#if SIM_LAYOUT == 'b'
    SAY(LOG_INFO, "ggml_cuda_init: GGML_CUDA_FORCE_MMQ:    no\n");
    SAY(LOG_INFO, "ggml_cuda_init: GGML_CUDA_FORCE_CUBLAS: no\n");
    SAY(LOG_INFO, "ggml_cuda_init: found %d CUDA devices:\n", count);
    (void)memory;
#else
    size_t total = 0;
    int ordinal;

    for (ordinal = 0; ordinal < count; ordinal++) {
        struct properties from = {{0}};

        CUDA_CHECK(cudaGetDeviceProperties(&from, ordinal));
        total += memory(&from);
    }
    SAY(LOG_INFO, "ggml_cuda_init: found %d CUDA devices (Total VRAM: %zu MiB):\n", count, total >> 20);
#endif
}

int ggml_cuda_find(struct gpu *found, int room)
{
    int count = 0, index, code = cudaGetDeviceCount(&count);

    if (code) {
        SAY(LOG_ERROR, "ggml_cuda_init: failed to initialize CUDA: %s\n", cudaGetErrorString(code));
        return 0;
    }
    if (count > room)
        ggml_abort(SOURCE, __LINE__, "GGML_ASSERT(info.device_count <= GGML_CUDA_MAX_DEVICES) failed");
    announce(count);
    for (index = 0; index < count; index++) {
        found[index].ordinal = index;
        look_at(&found[index]);
    }
    return count;
}

/* --- device code --------------------------------------------------------------------------------------------------- */

enum { MODULES = 256 };
SIM_ROOM(fatbin, 256 * 1024);

/* nvcc registers one container per source file before main, with a constructor for each. */
__attribute__((constructor)) static void register_code(void)
{
    static struct wrapper wrappers[MODULES];
    const unsigned char *at = fatbin.code, *end = fatbin.code + sizeof fatbin.code;
    struct container head;
    int count = 0;

    __asm__("" : "+r"(at));
    while (count < MODULES && at + sizeof head <= end) {
        memcpy(&head, at, sizeof head);
        if (head.magic != CONTAINER_MAGIC)
            break;
        wrappers[count] = (struct wrapper){0x466243b1, 1, at, NULL};
        __cudaRegisterFatBinaryEnd(__cudaRegisterFatBinary(&wrappers[count++]));
        at += (head.head + head.size + 7) & ~7ul;
    }
}
