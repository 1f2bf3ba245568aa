/* NVML that answers from sim.conf. Struct layouts are those of nvml.h as of driver 580. */
#define _GNU_SOURCE
#include "sim.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

enum { GPUS = 64, INSTANCES = 8, DESCRIPTORS_INIT = 4, DESCRIPTORS_GPU = 12 };

struct device {
    int gpu, mig, opened; /* mig is -1 for a whole GPU */
};

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
} PciInfo;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

typedef struct {
    unsigned char cluster[16];
    unsigned status, clique;
    unsigned char state;
} FabricInfo;

typedef struct {
    unsigned version;
    unsigned char cluster[16];
    unsigned status, clique;
    unsigned char state;
    unsigned health;
    unsigned char summary; /* version 3 only */
} FabricInfoV;

typedef struct {
    unsigned multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} Attributes;

typedef struct {
    unsigned pid;
    unsigned long long bytes;
} ProcessV1;

typedef struct {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
} Process;

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    int code;
    union {
        unsigned ui;
        unsigned long long ull;
    } value;
} FieldValue;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users, gpu_count;
static struct device gpus[GPUS], instances[GPUS][INSTANCES];

/* --- beginning and end --------------------------------------------------------------------------------------------- */

static int initialise(void)
{
    int gpu, mig;

    if (!sim_module_loaded())
        return DRIVER_NOT_LOADED;
    if (!sim_version_matches_module())
        return LIB_RM_VERSION_MISMATCH;
    switch (sim_node("/dev/nvidiactl")) {
    case SIM_NODE_ABSENT:
        return DRIVER_NOT_LOADED;
    case SIM_NODE_DENIED:
        return NO_PERMISSION;
    case SIM_NODE_UNUSABLE:
        return UNKNOWN;
    case SIM_NODE_OK:
        break;
    }
    if (!sim_take_descriptors(DESCRIPTORS_INIT, 1))
        return UNKNOWN;
    gpu_count = 0;
    for (gpu = 0; gpu < sim_gpu_count("nvml") && gpu_count < GPUS; gpu++) {
        if (sim_gpu_node(gpu) != SIM_NODE_OK)
            continue; /* a GPU that this user cannot open is not counted: no error */
        for (mig = 0; mig < INSTANCES; mig++)
            instances[gpu_count][mig] = (struct device){gpu, mig, 1};
        gpus[gpu_count++] = (struct device){gpu, -1, 0};
    }
    return OK;
}

static int begin(void)
{
    int code = OK;

    SIM_GATE("nvmlInit");
    pthread_mutex_lock(&lock);
    if (!users)
        code = initialise();
    users += code == OK;
    pthread_mutex_unlock(&lock);
    return code;
}

SIM_EXPORT int nvmlInit_v2(void)
{
    return begin();
}

SIM_EXPORT int nvmlInit(void)
{
    return begin();
}

SIM_EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    return begin();
}

SIM_EXPORT int nvmlShutdown(void)
{
    SIM_GATE("nvmlShutdown");
    if (!users)
        return UNINITIALIZED;
    users--;
    return OK;
}

SIM_EXPORT const char *nvmlErrorString(int code)
{
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "GPU access blocked by the operating system",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory", "No data",
        "vGPU ECC not supported", "Insufficient Resources", "Invalid Frequency", "Argument version mismatch",
        "Requested functionality has been deprecated", "System is not in ready state", "No supported GPUs were found",
        "Resource not in correct state to perform requested operation",
        "Reset type is not supported for given device",
    };

    return code >= 0 && code < (int)(sizeof texts / sizeof *texts) ? texts[code] : "Unknown Error";
}

#define NEED_INIT                 \
    do {                          \
        if (!users)               \
            return UNINITIALIZED; \
    } while (0)

static int give_text(char *to, unsigned room, const char *from)
{
    if (!from)
        return NOT_SUPPORTED;
    if (strlen(from) + 1 > room)
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return OK;
}

/* --- the system ---------------------------------------------------------------------------------------------------- */

SIM_EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned room)
{
    SIM_GATE("nvmlSystemGetDriverVersion");
    NEED_INIT;
    return give_text(text, room, sim_get("driver.module"));
}

SIM_EXPORT int nvmlSystemGetNVMLVersion(char *text, unsigned room)
{
    char version[96];

    SIM_GATE("nvmlSystemGetNVMLVersion");
    snprintf(version, sizeof version, "%lld.%s", sim_number(0, "driver.cuda") / 1000, sim_own_version());
    return give_text(text, room, version);
}

static int cuda_version(int *version)
{
    SIM_GATE("nvmlSystemGetCudaDriverVersion");
    *version = (int)sim_number(0, "driver.cuda");
    return OK;
}

SIM_EXPORT int nvmlSystemGetCudaDriverVersion(int *version)
{
    return cuda_version(version);
}

SIM_EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return cuda_version(version);
}

SIM_EXPORT int nvmlSystemGetConfComputeState(unsigned state[3])
{
    SIM_GATE("nvmlSystemGetConfComputeState");
    NEED_INIT;
    if (!sim_get("confcompute.feature"))
        return NOT_SUPPORTED;
    state[0] = (unsigned)sim_number(0, "confcompute.environment");
    state[1] = (unsigned)sim_number(0, "confcompute.feature");
    state[2] = (unsigned)sim_number(0, "confcompute.devtools");
    return OK;
}

SIM_EXPORT int nvmlSystemGetConfComputeGpusReadyState(unsigned *accepting)
{
    SIM_GATE("nvmlSystemGetConfComputeGpusReadyState");
    NEED_INIT;
    if (!sim_get("confcompute.ready"))
        return NOT_SUPPORTED;
    *accepting = (unsigned)sim_number(0, "confcompute.ready");
    return OK;
}

/* --- handles ------------------------------------------------------------------------------------------------------- */

static const char *property(const struct device *device, const char *key)
{
    char longer[64];
    const char *value = NULL;

    if (device->mig >= 0) {
        snprintf(longer, sizeof longer, "mig.%d.%s", device->mig, key);
        value = sim_gpu("nvml", device->gpu, longer);
    }
    return value ? value : sim_gpu("nvml", device->gpu, key);
}

static int known(const struct device *device)
{
    const struct device *last = &instances[GPUS - 1][INSTANCES - 1];

    return (device >= gpus && device < gpus + gpu_count) || (device >= &instances[0][0] && device <= last);
}

#define NEED_DEVICE(device)          \
    do {                             \
        NEED_INIT;                   \
        if (!known(device))          \
            return INVALID_ARGUMENT; \
    } while (0)

/* Actions for one GPU alone: at.nvmlDeviceGetHandle.1 */
static int open_gpu(struct device *device, struct device **handle)
{
    char name[64];
    int code;

    snprintf(name, sizeof name, "nvmlDeviceGetHandle.%d", device->gpu);
    if (sim_act(name, &code))
        return code;
    if (!device->opened && !sim_take_descriptors(DESCRIPTORS_GPU, 1))
        return UNKNOWN;
    device->opened = 1;
    *handle = device;
    return OK;
}

static int count_gpus(unsigned *count)
{
    SIM_GATE("nvmlDeviceGetCount");
    NEED_INIT;
    *count = (unsigned)sim_number(gpu_count, "nvml.reported_count");
    return OK;
}

SIM_EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    return count_gpus(count);
}

SIM_EXPORT int nvmlDeviceGetCount(unsigned *count)
{
    return count_gpus(count);
}

static int by_index(unsigned index, struct device **handle)
{
    SIM_GATE("nvmlDeviceGetHandleByIndex");
    NEED_INIT;
    return (int)index < gpu_count ? open_gpu(&gpus[index], handle) : INVALID_ARGUMENT;
}

SIM_EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **handle)
{
    return by_index(index, handle);
}

SIM_EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, struct device **handle)
{
    return by_index(index, handle);
}

static int mig_count(const struct device *gpu)
{
    const char *value = property(gpu, "mig.count");

    return value ? atoi(value) : 0;
}

SIM_EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **handle)
{
    int gpu, mig;

    SIM_GATE("nvmlDeviceGetHandleByUUID");
    NEED_INIT;
    for (gpu = 0; gpu < gpu_count; gpu++) {
        const char *own = property(&gpus[gpu], "uuid");

        if (own && !strcmp(own, uuid))
            return open_gpu(&gpus[gpu], handle);
        for (mig = 0; mig < mig_count(&gpus[gpu]) && mig < INSTANCES; mig++)
            if ((own = property(&instances[gpu][mig], "uuid")) && !strcmp(own, uuid)) {
                *handle = &instances[gpu][mig];
                return OK;
            }
    }
    return NOT_FOUND;
}

static void pci_numbers(const struct device *device, unsigned numbers[3])
{
    const char *text = property(device, "pci");

    memset(numbers, 0, 3 * sizeof *numbers);
    if (text)
        sscanf(text, "%x:%x:%x", &numbers[0], &numbers[1], &numbers[2]);
}

SIM_EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *text, struct device **handle)
{
    unsigned wanted[3] = {0, 0, 0}, own[3];
    int gpu;

    SIM_GATE("nvmlDeviceGetHandleByPciBusId");
    NEED_INIT;
    if (sscanf(text, "%x:%x:%x", &wanted[0], &wanted[1], &wanted[2]) != 3)
        return INVALID_ARGUMENT;
    for (gpu = 0; gpu < gpu_count; gpu++) {
        pci_numbers(&gpus[gpu], own);
        if (!memcmp(wanted, own, sizeof own))
            return open_gpu(&gpus[gpu], handle);
    }
    return NOT_FOUND;
}

/* --- single facts -------------------------------------------------------------------------------------------------- */

static int give_number(const struct device *device, const char *key, unsigned *number)
{
    const char *value = property(device, key);

    if (!value || !strcmp(value, "unsupported"))
        return NOT_SUPPORTED;
    *number = (unsigned)strtoull(value, NULL, 0);
    return OK;
}

#define TEXT(function, key)                                                   \
    SIM_EXPORT int function(struct device *device, char *text, unsigned room) \
    {                                                                         \
        SIM_GATE(#function);                                                  \
        NEED_DEVICE(device);                                                  \
        return give_text(text, room, property(device, key));                  \
    }

#define NUMBER(function, key)                                       \
    SIM_EXPORT int function(struct device *device, unsigned *value) \
    {                                                               \
        SIM_GATE(#function);                                        \
        NEED_DEVICE(device);                                        \
        return give_number(device, key, value);                     \
    }

#define TWO_NUMBERS(function, first_key, second_key)                                  \
    SIM_EXPORT int function(struct device *device, unsigned *first, unsigned *second) \
    {                                                                                 \
        int code;                                                                     \
                                                                                      \
        SIM_GATE(#function);                                                          \
        NEED_DEVICE(device);                                                          \
        code = give_number(device, first_key, first);                                 \
        return code ? code : give_number(device, second_key, second);                 \
    }

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
NUMBER(nvmlDeviceGetMinorNumber, "minor")
NUMBER(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER(nvmlDeviceGetVirtualizationMode, "virtualization")
NUMBER(nvmlDeviceGetBrand, "brand")
NUMBER(nvmlDeviceGetArchitecture, "architecture")
NUMBER(nvmlDeviceGetNumGpuCores, "cores")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.generation")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig.max")
NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance")
NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")
TWO_NUMBERS(nvmlDeviceGetCudaComputeCapability, "attr.75", "attr.76")
TWO_NUMBERS(nvmlDeviceGetMigMode, "mig.current", "mig.pending")
TWO_NUMBERS(nvmlDeviceGetEccMode, "ecc.current", "ecc.pending")
TWO_NUMBERS(nvmlDeviceGetGspFirmwareMode, "gsp.enabled", "gsp.default")

SIM_EXPORT int nvmlDeviceGetIndex(struct device *device, unsigned *index)
{
    SIM_GATE("nvmlDeviceGetIndex");
    NEED_DEVICE(device);
    *index = (unsigned)(device->mig < 0 ? device - gpus : device->mig);
    return OK;
}

SIM_EXPORT int nvmlDeviceGetGspFirmwareVersion(struct device *device, char *text)
{
    SIM_GATE("nvmlDeviceGetGspFirmwareVersion");
    NEED_DEVICE(device);
    return give_text(text, 64, property(device, "gsp.version"));
}

SIM_EXPORT int nvmlDeviceGetPciInfo_v3(struct device *device, PciInfo *pci)
{
    unsigned numbers[3];

    SIM_GATE("nvmlDeviceGetPciInfo");
    NEED_DEVICE(device);
    memset(pci, 0, sizeof *pci);
    pci_numbers(device, numbers);
    pci->domain = numbers[0];
    pci->bus = numbers[1];
    pci->device = numbers[2];
    snprintf(pci->legacy, sizeof pci->legacy, "%04x:%02X:%02X.0", numbers[0] & 0xffff, numbers[1] & 0xff,
             numbers[2] & 0xff);
    snprintf(pci->id, sizeof pci->id, "%08X:%02X:%02X.0", numbers[0], numbers[1], numbers[2]);
    give_number(device, "pci.device_id", &pci->device_id);
    give_number(device, "pci.subsystem_id", &pci->subsystem_id);
    return OK;
}

/* --- memory, health, fabric ---------------------------------------------------------------------------------------- */

static unsigned long long amount(const struct device *device, const char *key)
{
    const char *value = property(device, key);

    return value ? strtoull(value, NULL, 0) : 0;
}

/* Version 1 counts what the driver reserves as used, version 2 does not. */
static void measure(const struct device *device, MemoryV2 *memory)
{
    unsigned long long gone;

    memory->total = amount(device, "memory.total");
    memory->reserved = amount(device, "memory.reserved");
    memory->used = amount(device, "memory.used");
    gone = memory->reserved + memory->used;
    memory->free = gone < memory->total ? memory->total - gone : 0;
}

SIM_EXPORT int nvmlDeviceGetMemoryInfo(struct device *device, Memory *memory)
{
    MemoryV2 all;

    SIM_GATE("nvmlDeviceGetMemoryInfo");
    NEED_DEVICE(device);
    measure(device, &all);
    *memory = (Memory){all.total, all.free, all.total - all.free};
    return OK;
}

SIM_EXPORT int nvmlDeviceGetMemoryInfo_v2(struct device *device, MemoryV2 *memory)
{
    SIM_GATE("nvmlDeviceGetMemoryInfo");
    NEED_DEVICE(device);
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    measure(device, memory);
    return OK;
}

static int ecc_errors(const struct device *device, unsigned kind, unsigned counter, unsigned long long *errors)
{
    char key[64];

    NEED_DEVICE(device);
    if (amount(device, "ecc.current") != 1)
        return NOT_SUPPORTED;
    snprintf(key, sizeof key, "ecc.%s.%s", kind ? "uncorrected" : "corrected", counter ? "aggregate" : "volatile");
    *errors = amount(device, key);
    return OK;
}

SIM_EXPORT int nvmlDeviceGetTotalEccErrors(struct device *device, unsigned kind, unsigned counter,
                                           unsigned long long *errors)
{
    SIM_GATE("nvmlDeviceGetTotalEccErrors");
    return ecc_errors(device, kind, counter, errors);
}

SIM_EXPORT int nvmlDeviceGetMemoryErrorCounter(struct device *device, unsigned kind, unsigned counter, unsigned place,
                                               unsigned long long *errors)
{
    (void)place;
    SIM_GATE("nvmlDeviceGetMemoryErrorCounter");
    return ecc_errors(device, kind, counter, errors);
}

SIM_EXPORT int nvmlDeviceGetRemappedRows(struct device *device, unsigned *corrected, unsigned *uncorrected,
                                         unsigned *pending, unsigned *failed)
{
    SIM_GATE("nvmlDeviceGetRemappedRows");
    NEED_DEVICE(device);
    if (give_number(device, "rows.corrected", corrected) || give_number(device, "rows.uncorrected", uncorrected) ||
        give_number(device, "rows.pending", pending) || give_number(device, "rows.failed", failed))
        return NOT_SUPPORTED;
    return OK;
}

SIM_EXPORT int nvmlDeviceGetFieldValues(struct device *device, int count, FieldValue *values)
{
    char key[32];
    int index;

    SIM_GATE("nvmlDeviceGetFieldValues");
    NEED_DEVICE(device);
    for (index = 0; index < count; index++) {
        snprintf(key, sizeof key, "field.%u", values[index].field);
        values[index].type = 1; /* NVML_VALUE_TYPE_UNSIGNED_INT */
        values[index].value.ull = 0;
        values[index].code = give_number(device, key, &values[index].value.ui);
    }
    return OK;
}

static int fabric(const struct device *device, unsigned *state, unsigned *status, unsigned *clique)
{
    NEED_DEVICE(device);
    if (give_number(device, "fabric.state", state))
        return NOT_SUPPORTED;
    *status = (unsigned)amount(device, "fabric.status");
    *clique = (unsigned)amount(device, "fabric.clique");
    return OK;
}

SIM_EXPORT int nvmlDeviceGetGpuFabricInfo(struct device *device, FabricInfo *info)
{
    unsigned state, status, clique;
    int code;

    SIM_GATE("nvmlDeviceGetGpuFabricInfo");
    if ((code = fabric(device, &state, &status, &clique)))
        return code;
    memset(info, 0, sizeof *info);
    info->state = (unsigned char)state;
    info->status = status;
    info->clique = clique;
    return OK;
}

SIM_EXPORT int nvmlDeviceGetGpuFabricInfoV(struct device *device, FabricInfoV *info)
{
    unsigned state, status, clique, version = info->version;
    int code;

    SIM_GATE("nvmlDeviceGetGpuFabricInfoV");
    if (version != (36u | 2u << 24) && version != (40u | 3u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    if ((code = fabric(device, &state, &status, &clique)))
        return code;
    memset(info, 0, version & 0xffffff);
    info->version = version;
    info->state = (unsigned char)state;
    info->status = status;
    info->clique = clique;
    info->health = (unsigned)amount(device, "fabric.health");
    return OK;
}

/* --- MIG and processes --------------------------------------------------------------------------------------------- */

SIM_EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **handle)
{
    SIM_GATE("nvmlDeviceGetMigDeviceHandleByIndex");
    NEED_DEVICE(device);
    if (device->mig >= 0)
        return INVALID_ARGUMENT;
    if (amount(device, "mig.current") != 1 || index >= amount(device, "mig.max"))
        return INVALID_ARGUMENT;
    if ((int)index >= mig_count(device) || index >= INSTANCES)
        return NOT_FOUND;
    *handle = &instances[device - gpus][index];
    return OK;
}

SIM_EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *device, struct device **handle)
{
    int gpu;

    SIM_GATE("nvmlDeviceGetDeviceHandleFromMigDeviceHandle");
    NEED_DEVICE(device);
    for (gpu = 0; device->mig >= 0 && gpu < gpu_count; gpu++)
        if (gpus[gpu].gpu == device->gpu) {
            *handle = &gpus[gpu];
            return OK;
        }
    return INVALID_ARGUMENT;
}

SIM_EXPORT int nvmlDeviceIsMigDeviceHandle(struct device *device, unsigned *is)
{
    SIM_GATE("nvmlDeviceIsMigDeviceHandle");
    NEED_DEVICE(device);
    *is = device->mig >= 0;
    return OK;
}

SIM_EXPORT int nvmlDeviceGetAttributes_v2(struct device *device, Attributes *attributes)
{
    SIM_GATE("nvmlDeviceGetAttributes");
    NEED_DEVICE(device);
    if (device->mig < 0)
        return NOT_SUPPORTED;
    memset(attributes, 0, sizeof *attributes);
    attributes->multiprocessors = (unsigned)amount(device, "attr.16");
    attributes->gpu_slices = (unsigned)amount(device, "slices");
    attributes->compute_slices = (unsigned)amount(device, "slices");
    attributes->memory_mib = amount(device, "memory.total") >> 20;
    return OK;
}

/* `processes` is PID:BYTES,PID:BYTES; the fields that a form of the function lacks are left out by WIDTH. */
static int list(const struct device *device, const char *key, unsigned *count, char *room, size_t width)
{
    const char *text;
    unsigned capacity = *count, found = 0, pid;
    unsigned long long bytes;

    NEED_DEVICE(device);
    text = property(device, key);
    for (; text && *text; text = strchr(text, ',') ? strchr(text, ',') + 1 : "") {
        if (sscanf(text, "%u:%llu", &pid, &bytes) != 2)
            break;
        if (found < capacity && room) {
            Process one = {pid, bytes, 0xffffffffu, 0xffffffffu};

            memcpy(room + found * width, &one, width);
        }
        found++;
    }
    *count = found;
    return found > capacity ? INSUFFICIENT_SIZE : OK;
}

#define PROCESSES(function, key, type)                                              \
    SIM_EXPORT int function(struct device *device, unsigned *count, char *room)     \
    {                                                                               \
        SIM_GATE(#function);                                                        \
        return list(device, key, count, room, sizeof(type));                        \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses, "processes", ProcessV1)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "processes", Process)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "processes", Process)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "processes.mps", Process)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "processes.graphics", Process)
