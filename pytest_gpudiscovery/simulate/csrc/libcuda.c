/* A driver API that answers from sim.conf. Devices, contexts, memory and modules exist in this process only; a device
 * pointer is a host pointer. One kernel is known by name: gate_kernel(out, n) writes out[i] = i * 3 + 1. */
#define _GNU_SOURCE
#include "sim.h"
#include "visible.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

typedef unsigned long long CUdeviceptr;
typedef struct {
    unsigned char bytes[16];
} CUuuid;

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    JIT_COMPILER_NOT_FOUND = 221,
    UNSUPPORTED_PTX_VERSION = 222,
    OPERATING_SYSTEM = 304,
    NOT_FOUND = 500,
    NOT_SUPPORTED = 801,
    SYSTEM_DRIVER_MISMATCH = 803,
    UNKNOWN = 999
};

enum { DEVICES = 64, DESCRIPTORS = 12 };
enum { ATTRIBUTE_SM_COUNT = 16, ATTRIBUTE_CC_MAJOR = 75, ATTRIBUTE_CC_MINOR = 76, ATTRIBUTE_VMM = 102 };
static const size_t ADDRESS_SPACE = (size_t)8 << 30; /* less than this and cuInit answers 2; measured: 4 GB is too little */

struct context {
    int device, users, primary;
};
struct device {
    int gpu, mig; /* mig is -1 for a whole GPU */
    struct context primary;
};
struct block {
    struct block *next;
    CUdeviceptr start;
    size_t size;
    int device;
};
struct function {
    char name[128];
};
struct module {
    struct function functions[16];
    int count;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[DEVICES];
static int device_count, initialised;
static struct block *blocks;
static __thread struct context *current;

/* --- which devices this process sees ------------------------------------------------------------------------------- */

static const char *mig_value(int gpu, int mig, const char *key)
{
    char name[64];

    snprintf(name, sizeof name, "mig.%d.%s", mig, key);
    return sim_gpu("cuda", gpu, name);
}

static int mig_count(int gpu)
{
    return (int)sim_gpu_number(0, "cuda", gpu, "mig.count");
}

static int mig_enabled(int gpu)
{
    return sim_gpu_number(0, "cuda", gpu, "mig.current") == 1;
}

static void see(int gpu, int mig)
{
    if (device_count < DEVICES)
        devices[device_count++] = (struct device){gpu, mig, {0, 0, 1}};
}

/* Without CUDA_VISIBLE_DEVICES: every GPU; of GPUs in MIG mode the first instance only, and one in all. */
static void see_all(void)
{
    int gpu, seen_mig = 0;

    for (gpu = 0; gpu < sim_gpu_count("cuda"); gpu++) {
        if (sim_gpu_node(gpu) != SIM_NODE_OK)
            continue;
        if (!mig_enabled(gpu))
            see(gpu, -1);
        else if (mig_count(gpu) && !seen_mig++)
            see(gpu, 0);
    }
}

/* Find the one device that ENTRY names, by number among the COUNT devices of ALL; 0 when there is none, or several.
 * A MIG- entry with the UUID of a GPU that is not in MIG mode names that GPU: measured once ("MIG-<uuid>,0"). */
static int find(const struct visible_entry *entry, const struct device *all, int count, struct device *found)
{
    int gpu, mig, names = 0;

    if (!entry->by_uuid) {
        if (entry->number >= (unsigned)count)
            return 0;
        *found = all[entry->number];
        return 1;
    }
    for (gpu = 0; gpu < sim_gpu_count("cuda"); gpu++) {
        if (sim_gpu_node(gpu) != SIM_NODE_OK)
            continue;
        if (!mig_enabled(gpu)) {
            if (visible_begins(entry, sim_gpu("cuda", gpu, "uuid")) && sim_number(1, "cuda.matches_uuid")) {
                *found = (struct device){gpu, -1, {0, 0, 1}};
                names++;
            }
            continue;
        }
        for (mig = 0; entry->mig && mig < mig_count(gpu); mig++)
            if (visible_begins(entry, mig_value(gpu, mig, "uuid"))) {
                *found = (struct device){gpu, mig, {0, 0, 1}};
                names++;
            }
    }
    return names == 1;
}

/* The list ends at the first entry that is no device, and nothing is reported; a device that is named twice is. */
static int see_chosen(const char *variable)
{
    struct device all[DEVICES], found;
    struct visible_entry entry;
    int all_count, seen, code = OK, by_uuid = visible_is_uuid(variable);
    char *copy = strdup(variable), *rest = copy, *name;

    see_all();
    all_count = device_count;
    memcpy(all, devices, sizeof all);
    device_count = 0;
    while (copy && !code && (name = strsep(&rest, ","))) {
        if (!visible_read(name, by_uuid, &entry) || !find(&entry, all, all_count, &found))
            break;
        for (seen = 0; seen < device_count; seen++)
            if (devices[seen].gpu == found.gpu && devices[seen].mig == found.mig)
                code = INVALID_DEVICE;
        see(found.gpu, found.mig);
    }
    free(copy);
    if (code)
        device_count = 0;
    return code;
}

static int initialise(void)
{
    const char *chosen = getenv("CUDA_VISIBLE_DEVICES");
    struct rlimit space;
    int code = OK;

    if (!sim_version_matches_module())
        return SYSTEM_DRIVER_MISMATCH;
    if (sim_proc_is_another_namespaces())
        return OPERATING_SYSTEM;
    if (!getrlimit(RLIMIT_AS, &space) && space.rlim_cur < ADDRESS_SPACE)
        return OUT_OF_MEMORY;
    if (!sim_module_loaded() || sim_node("/dev/nvidiactl") != SIM_NODE_OK || !sim_take_descriptors(DESCRIPTORS, 0))
        return NO_DEVICE;
    if (visible_order_is_bad())
        return INVALID_DEVICE;
    if (chosen && strlen(chosen) <= VISIBLE_LONGEST)
        code = see_chosen(chosen);
    else
        see_all();
    if (code)
        return code;
    if (!device_count)
        return NO_DEVICE;
    if (!sim_number(0, "uvm.loaded") || sim_node("/dev/nvidia-uvm") != SIM_NODE_OK) {
        device_count = 0;
        return UNKNOWN;
    }
    initialised = 1;
    return OK;
}

SIM_EXPORT int cuInit(unsigned flags)
{
    int code = OK;

    SIM_GATE("cuInit");
    if (flags)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    if (!initialised)
        code = initialise();
    pthread_mutex_unlock(&lock);
    return code;
}

SIM_EXPORT int cuDriverGetVersion(int *version)
{
    SIM_GATE("cuDriverGetVersion");
    if (!version)
        return INVALID_VALUE;
    *version = (int)sim_number(0, "driver.cuda");
    return OK;
}

/* --- devices ------------------------------------------------------------------------------------------------------- */

#define NEED_INIT           \
    do {                    \
        if (!initialised)   \
            return NOT_INITIALIZED; \
    } while (0)

/* Actions for one GPU alone: at.cuDeviceGet.1 */
#define OF_GPU(gpu)                                              \
    do {                                                         \
        char sim_name[96];                                       \
        int sim_code;                                            \
        snprintf(sim_name, sizeof sim_name, "%s.%d", __func__, gpu); \
        if (sim_act(sim_name, &sim_code))                        \
            return sim_code;                                     \
    } while (0)

#define NEED_DEVICE(device)                         \
    do {                                            \
        NEED_INIT;                                  \
        if (device < 0 || device >= device_count)   \
            return INVALID_DEVICE;                  \
        OF_GPU(devices[device].gpu);                \
    } while (0)

static const char *property(int device, const char *key)
{
    const char *value = devices[device].mig < 0 ? NULL : mig_value(devices[device].gpu, devices[device].mig, key);

    return value ? value : sim_gpu("cuda", devices[device].gpu, key);
}

static long long amount(int device, const char *key)
{
    const char *value = property(device, key);

    return value ? strtoll(value, NULL, 0) : 0;
}

/* The memory that the device says it has; what can be allocated is memory.cuda. */
static size_t shown(int device)
{
    return (size_t)amount(device, property(device, "memory.shown") ? "memory.shown" : "memory.cuda");
}

SIM_EXPORT int cuDeviceGetCount(int *count)
{
    SIM_GATE("cuDeviceGetCount");
    NEED_INIT;
    *count = (int)sim_number(device_count, "cuda.reported_count");
    return OK;
}

SIM_EXPORT int cuDeviceGet(int *device, int ordinal)
{
    SIM_GATE("cuDeviceGet");
    NEED_DEVICE(ordinal);
    *device = ordinal;
    return OK;
}

SIM_EXPORT int cuDeviceGetName(char *name, int room, int device)
{
    SIM_GATE("cuDeviceGetName");
    NEED_DEVICE(device);
    sim_copy(name, (size_t)room, property(device, "name"));
    return OK;
}

SIM_EXPORT int cuDeviceGetUuid(CUuuid *uuid, int device)
{
    SIM_GATE("cuDeviceGetUuid");
    NEED_DEVICE(device);
    sim_uuid_bytes(sim_gpu("cuda", devices[device].gpu, "uuid"), uuid->bytes); /* the GPU's own, also for an instance */
    return OK;
}

SIM_EXPORT int cuDeviceGetUuid_v2(CUuuid *uuid, int device)
{
    SIM_GATE("cuDeviceGetUuid_v2");
    NEED_DEVICE(device);
    sim_uuid_bytes(property(device, "uuid"), uuid->bytes);
    return OK;
}

SIM_EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    SIM_GATE("cuDeviceTotalMem_v2");
    NEED_DEVICE(device);
    *bytes = shown(device);
    return OK;
}

SIM_EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    char key[32];
    const char *found;

    SIM_GATE("cuDeviceGetAttribute");
    NEED_DEVICE(device);
    snprintf(key, sizeof key, "attr.%d", attribute);
    if (!(found = property(device, key)))
        return INVALID_VALUE;
    *value = (int)strtoll(found, NULL, 0);
    return OK;
}

SIM_EXPORT int cuDeviceGetPCIBusId(char *text, int room, int device)
{
    SIM_GATE("cuDeviceGetPCIBusId");
    NEED_DEVICE(device);
    sim_copy(text, (size_t)room, property(device, "pci"));
    return OK;
}

SIM_EXPORT int cuDeviceGetByPCIBusId(int *device, const char *text)
{
    int index;

    SIM_GATE("cuDeviceGetByPCIBusId");
    NEED_INIT;
    for (index = 0; index < device_count; index++) {
        const char *pci = property(index, "pci");

        if (pci && !strcasecmp(pci, text)) {
            *device = index;
            return OK;
        }
    }
    return INVALID_DEVICE;
}

/* --- contexts ------------------------------------------------------------------------------------------------------ */

SIM_EXPORT int cuDevicePrimaryCtxRetain(struct context **context, int device)
{
    SIM_GATE("cuDevicePrimaryCtxRetain");
    NEED_DEVICE(device);
    if (amount(device, "memory.used") + amount(device, "memory.context") > amount(device, "memory.cuda"))
        return OUT_OF_MEMORY;
    devices[device].primary.device = device;
    devices[device].primary.users++;
    *context = &devices[device].primary;
    return OK;
}

SIM_EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
    SIM_GATE("cuDevicePrimaryCtxRelease_v2");
    NEED_DEVICE(device);
    if (!devices[device].primary.users)
        return INVALID_CONTEXT;
    devices[device].primary.users--;
    return OK;
}

SIM_EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    SIM_GATE("cuDevicePrimaryCtxGetState");
    NEED_DEVICE(device);
    *flags = 0;
    *active = devices[device].primary.users > 0;
    return OK;
}

SIM_EXPORT int cuCtxSetCurrent(struct context *context)
{
    SIM_GATE("cuCtxSetCurrent");
    NEED_INIT;
    current = context;
    return OK;
}

SIM_EXPORT int cuCtxGetCurrent(struct context **context)
{
    SIM_GATE("cuCtxGetCurrent");
    NEED_INIT;
    *context = current;
    return OK;
}

SIM_EXPORT int cuCtxGetDevice(int *device)
{
    SIM_GATE("cuCtxGetDevice");
    NEED_INIT;
    if (!current)
        return INVALID_CONTEXT;
    *device = current->device;
    return OK;
}

static int create(struct context **context, int device)
{
    NEED_DEVICE(device);
    if (!(*context = calloc(1, sizeof **context)))
        return OUT_OF_MEMORY;
    (*context)->device = device;
    current = *context;
    return OK;
}

SIM_EXPORT int cuCtxCreate_v2(struct context **context, unsigned flags, int device)
{
    (void)flags;
    SIM_GATE("cuCtxCreate");
    return create(context, device);
}

SIM_EXPORT int cuCtxCreate_v3(struct context **context, void *affinity, int count, unsigned flags, int device)
{
    (void)affinity, (void)count, (void)flags;
    SIM_GATE("cuCtxCreate");
    return create(context, device);
}

SIM_EXPORT int cuCtxCreate_v4(struct context **context, void *parameters, unsigned flags, int device)
{
    (void)parameters, (void)flags;
    SIM_GATE("cuCtxCreate");
    return create(context, device);
}

SIM_EXPORT int cuCtxDestroy_v2(struct context *context)
{
    SIM_GATE("cuCtxDestroy_v2");
    NEED_INIT;
    if (!context || context->primary)
        return INVALID_CONTEXT;
    if (current == context)
        current = NULL;
    free(context);
    return OK;
}

#define NEED_CONTEXT                \
    do {                            \
        NEED_INIT;                  \
        if (!current)               \
            return INVALID_CONTEXT; \
    } while (0)

SIM_EXPORT int cuCtxSynchronize(void)
{
    SIM_GATE("cuCtxSynchronize");
    NEED_CONTEXT;
    return OK;
}

/* --- memory -------------------------------------------------------------------------------------------------------- */

static size_t taken(int device)
{
    size_t sum = (size_t)amount(device, "memory.context");
    struct block *block;

    for (block = blocks; block; block = block->next)
        if (block->device == device)
            sum += block->size;
    return sum;
}

static size_t left(int device)
{
    size_t total = (size_t)amount(device, "memory.cuda"), used = (size_t)amount(device, "memory.used") + taken(device);

    return used < total ? total - used : 0;
}

SIM_EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total)
{
    SIM_GATE("cuMemGetInfo_v2");
    NEED_CONTEXT;
    *total = shown(current->device);
    *available = left(current->device) < *total ? left(current->device) : *total;
    return OK;
}

SIM_EXPORT int cuMemGetAllocationGranularity(size_t *bytes, const void *property_of, int option)
{
    (void)option;
    SIM_GATE("cuMemGetAllocationGranularity");
    NEED_INIT;
    if (!property_of)
        return INVALID_VALUE;
    *bytes = 2 << 20;
    return OK;
}

static int allocate(CUdeviceptr *pointer, size_t size)
{
    struct block *block;
    void *memory;

    if (!size)
        return INVALID_VALUE;
    if (size > left(current->device))
        return OUT_OF_MEMORY;
    /* NORESERVE: a big block costs only what is touched */
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || !(block = malloc(sizeof *block)))
        return OUT_OF_MEMORY;
    *block = (struct block){blocks, (CUdeviceptr)(uintptr_t)memory, size, current->device};
    *pointer = block->start;
    blocks = block;
    return OK;
}

SIM_EXPORT int cuMemAlloc_v2(CUdeviceptr *pointer, size_t size)
{
    SIM_GATE("cuMemAlloc_v2");
    NEED_CONTEXT;
    return allocate(pointer, size);
}

SIM_EXPORT int cuMemAllocManaged(CUdeviceptr *pointer, size_t size, unsigned flags)
{
    (void)flags;
    SIM_GATE("cuMemAllocManaged");
    NEED_CONTEXT;
    return allocate(pointer, size);
}

SIM_EXPORT int cuMemFree_v2(CUdeviceptr pointer)
{
    struct block **link, *block;

    SIM_GATE("cuMemFree_v2");
    NEED_INIT;
    if (!pointer)
        return OK;
    for (link = &blocks; (block = *link); link = &block->next)
        if (block->start == pointer) {
            *link = block->next;
            munmap((void *)(uintptr_t)block->start, block->size);
            free(block);
            return OK;
        }
    return INVALID_VALUE;
}

/* Host memory of SIZE bytes of device memory at POINTER, NULL when they are not all allocated. */
static void *memory_at(CUdeviceptr pointer, size_t size)
{
    struct block *block;

    for (block = blocks; block; block = block->next)
        if (pointer >= block->start && size <= block->size && pointer - block->start <= block->size - size)
            return (void *)(uintptr_t)pointer;
    return NULL;
}

SIM_EXPORT int cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size)
{
    void *memory;

    SIM_GATE("cuMemcpyHtoD_v2");
    NEED_CONTEXT;
    if (!(memory = memory_at(to, size)))
        return INVALID_VALUE;
    memcpy(memory, from, size);
    return OK;
}

SIM_EXPORT int cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size)
{
    void *memory;

    SIM_GATE("cuMemcpyDtoH_v2");
    NEED_CONTEXT;
    if (!(memory = memory_at(from, size)))
        return INVALID_VALUE;
    memcpy(to, memory, size);
    if (size && sim_number(0, "cuda.corrupts_copies"))
        *(unsigned char *)to ^= 1;
    return OK;
}

SIM_EXPORT int cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count)
{
    void *memory;

    SIM_GATE("cuMemsetD8_v2");
    NEED_CONTEXT;
    if (!(memory = memory_at(to, count)))
        return INVALID_VALUE;
    memset(memory, value, count);
    return OK;
}

SIM_EXPORT int cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count)
{
    uint32_t *memory;
    size_t index;

    SIM_GATE("cuMemsetD32_v2");
    NEED_CONTEXT;
    if (!(memory = memory_at(to, count * sizeof *memory)))
        return INVALID_VALUE;
    for (index = 0; index < count; index++)
        memory[index] = value;
    return OK;
}

/* --- modules and the one kernel ------------------------------------------------------------------------------------ */

/* The code for PTX TEXT on the current device: a newer PTX than the driver knows, or a newer target than the GPU. */
static int compile(const char *text, struct module *module)
{
    const char *version = strstr(text, ".version"), *target = strstr(text, ".target sm_"), *entry = text;
    int device = current->device, major = 0, minor = 0, wanted = 0;
    long long cc = amount(device, "attr.75") * 10 + amount(device, "attr.76");
    void *compiler;

    if (!version || sscanf(version, ".version %d.%d", &major, &minor) != 2 || !target)
        return INVALID_IMAGE;
    if (!(compiler = dlopen("libnvidia-ptxjitcompiler.so.1", RTLD_NOW | RTLD_LOCAL)))
        return JIT_COMPILER_NOT_FOUND;
    dlclose(compiler);
    if (major * 10 + minor > sim_number(90, "driver.ptx"))
        return UNSUPPORTED_PTX_VERSION;
    sscanf(target, ".target sm_%d", &wanted);
    if (wanted > cc)
        return NO_BINARY_FOR_GPU;
    while ((entry = strstr(entry, ".entry")) && module->count < 16) {
        entry += strlen(".entry");
        if (sscanf(entry, " %127[A-Za-z0-9_$]", module->functions[module->count].name) == 1)
            module->count++;
    }
    return OK;
}

SIM_EXPORT int cuModuleLoadData(struct module **module, const void *image)
{
    int code;

    SIM_GATE("cuModuleLoadData");
    NEED_CONTEXT;
    if (!image || !module)
        return INVALID_VALUE;
    if (!(*module = calloc(1, sizeof **module)))
        return OUT_OF_MEMORY;
    if ((code = compile(image, *module))) {
        free(*module);
        *module = NULL;
    }
    return code;
}

SIM_EXPORT int cuModuleLoadDataEx(struct module **module, const void *image, unsigned count, int *options, void **values)
{
    (void)count, (void)options, (void)values;
    return cuModuleLoadData(module, image);
}

SIM_EXPORT int cuModuleGetFunction(struct function **function, struct module *module, const char *name)
{
    int index;

    SIM_GATE("cuModuleGetFunction");
    NEED_CONTEXT;
    for (index = 0; index < module->count; index++)
        if (!strcmp(module->functions[index].name, name)) {
            *function = &module->functions[index];
            return OK;
        }
    return NOT_FOUND;
}

SIM_EXPORT int cuModuleUnload(struct module *module)
{
    SIM_GATE("cuModuleUnload");
    NEED_CONTEXT;
    free(module);
    return OK;
}

SIM_EXPORT int cuFuncGetAttribute(int *value, int attribute, struct function *function)
{
    SIM_GATE("cuFuncGetAttribute");
    NEED_CONTEXT;
    if (!function)
        return INVALID_VALUE;
    *value = attribute == 0 ? 1024 : 0; /* MAX_THREADS_PER_BLOCK */
    return OK;
}

SIM_EXPORT int cuLaunchKernel(struct function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void *stream,
                              void **parameters, void **extra)
{
    uint32_t *out, count;
    size_t threads = (size_t)grid_x * grid_y * grid_z * block_x * block_y * block_z, index;

    (void)shared, (void)stream, (void)extra;
    SIM_GATE("cuLaunchKernel");
    NEED_CONTEXT;
    if (!function || !parameters)
        return INVALID_VALUE;
    if (strcmp(function->name, "gate_kernel"))
        return NOT_SUPPORTED;
    count = *(uint32_t *)parameters[1];
    if (!(out = memory_at(*(CUdeviceptr *)parameters[0], count * sizeof *out)))
        return 700; /* CUDA_ERROR_ILLEGAL_ADDRESS */
    for (index = 0; index < count && index < threads; index++)
        out[index] = (uint32_t)index * 3 + 1 + (uint32_t)sim_number(0, "cuda.kernel_is_wrong");
    return OK;
}

/* --- names --------------------------------------------------------------------------------------------------------- */

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
#define SIM_ERROR(code, name, text) {code, name, text},
#include "errors.h"
};

static int describe(int code, const char **name, const char **text)
{
    size_t index;

    for (index = 0; index < sizeof errors / sizeof *errors; index++)
        if (errors[index].code == code) {
            *name = errors[index].name;
            *text = errors[index].text;
            return OK;
        }
    *name = *text = NULL;
    return INVALID_VALUE;
}

SIM_EXPORT int cuGetErrorName(int code, const char **name)
{
    const char *text;

    return describe(code, name, &text);
}

SIM_EXPORT int cuGetErrorString(int code, const char **text)
{
    const char *name;

    return describe(code, &name, text);
}

/* Base names whose newest form depends on the CUDA version that the caller was built for. */
static const struct {
    const char *base, *symbol;
    int since;
} renamed[] = {
    {"cuCtxCreate", "cuCtxCreate_v4", 12050},
    {"cuCtxCreate", "cuCtxCreate_v3", 11040},
    {"cuDeviceGetUuid", "cuDeviceGetUuid_v2", 11040},
    {"cuGetProcAddress", "cuGetProcAddress_v2", 12000},
};

static void *address_of(const char *name, int version)
{
    static void *self;
    Dl_info info;
    char longer[128];
    void *found;
    size_t index;

    if (!self && dladdr((void *)address_of, &info))
        self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (!self)
        return NULL;
    for (index = 0; index < sizeof renamed / sizeof *renamed; index++)
        if (!strcmp(name, renamed[index].base) && version >= renamed[index].since &&
            (found = dlsym(self, renamed[index].symbol)))
            return found;
    if (strcmp(name, "cuDeviceGetUuid") && strcmp(name, "cuGetProcAddress")) {
        snprintf(longer, sizeof longer, "%s_v2", name);
        if ((found = dlsym(self, longer)))
            return found;
    }
    return dlsym(self, name);
}

SIM_EXPORT int cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags, int *status)
{
    (void)flags;
    SIM_GATE("cuGetProcAddress");
    *address = address_of(name, version);
    if (status)
        *status = *address ? 0 : 1; /* CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND */
    return *address || status ? OK : NOT_FOUND;
}

SIM_EXPORT int cuGetProcAddress(const char *name, void **address, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, address, version, flags, NULL);
}
