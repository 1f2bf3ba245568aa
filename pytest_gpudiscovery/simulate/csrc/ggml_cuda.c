/* The registry of the simulated libggml-cuda: what ggml_backend_init hands out. sim.conf can make it present another
 * layout (ggml.cuda.layout), API version (ggml.cuda.api_version), count (ggml.cuda.devices) or order (ggml.cuda.order);
 * the actions at.ggml_backend_init and at.ggml_backend_dev_memory stand before the work of these. */
#define _GNU_SOURCE
#include "ggml_cuda.h"
#include "sim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct gpu gpus[GGML_CUDA_MAX_DEVICES];
static int gpu_count;
static char layout; /* of what is presented */
static struct reg registry;

static struct gpu *of(device_t device)
{
    return layout == 'b' ? ((struct device_b *)device)->context : ((struct device_c *)device)->context;
}

/* --- the device's interface ---------------------------------------------------------------------------------------- */

static const char *get_name(device_t device)
{
    return of(device)->name;
}

static const char *get_description(device_t device)
{
    return of(device)->description;
}

static int get_type(device_t device)
{
    (void)device;
    return DEVICE_GPU;
}

static void select_device(int wanted)
{
    int current;

    CUDA_CHECK(cudaGetDevice(&current));
    if (current != wanted)
        CUDA_CHECK(cudaSetDevice(wanted));
}

static void get_memory(device_t device, size_t *available, size_t *total)
{
    struct gpu *gpu = of(device);
    int code;

    if (sim_act("ggml_backend_dev_memory", &code)) {
        *available = *total = (size_t)code;
        return;
    }
    select_device(gpu->ordinal);
#if SIM_LAYOUT == 'b'
    if (!ggml_nvml_init()) {
        code = ggml_nvml_get_device_memory(gpu->id, available, total);
        ggml_nvml_release();
        if (!code) {
            ggml_log_internal(LOG_DEBUG,
                              "ggml_backend_cuda_device_get_memory device %s utilizing NVML memory reporting free: %zu "
                              "total: %zu\n",
                              gpu->id, *available, *total);
            return;
        }
    }
    CUDA_CHECK(cudaMemGetInfo(available, total));
#else
    if ((code = cudaMemGetInfo(available, total))) {
        cudaGetLastError();
        ggml_log_internal(LOG_WARN,
                          "ggml_backend_cuda_device_get_memory: cudaMemGetInfo failed (%s), returning 0/0\n",
                          cudaGetErrorString(code));
        *available = *total = 0;
    }
#endif
}

static void get_props_b(device_t device, void *to)
{
    struct gpu *gpu = of(device);

    *(struct props_b *)to = (struct props_b){
        .name = gpu->name,
        .description = gpu->description,
        .id = gpu->id, /* memory stays 0: asking for it would cost a context */
        .type = DEVICE_GPU,
        .device_id = gpu->pci,
        .caps = {true, getenv("GGML_CUDA_NO_PINNED") == NULL, false, true},
        .driver_major = gpu->driver_major,
        .driver_minor = gpu->driver_minor,
        .compute_major = gpu->cc_major,
        .compute_minor = gpu->cc_minor,
        .integrated = gpu->integrated,
        .library = "CUDA",
    };
}

static void get_props_c(device_t device, void *to)
{
    struct gpu *gpu = of(device);
    struct props_c *props = to;

    *props = (struct props_c){
        .name = gpu->name,
        .description = gpu->description,
        .type = DEVICE_GPU,
        .device_id = gpu->pci,
        .caps = {true, getenv("GGML_CUDA_NO_PINNED") == NULL, false, true, true},
    };
    get_memory(device, &props->memory_free, &props->memory_total);
}

/* What the first computation would do; discovery stops before it. */
static bool offload_op(device_t device, const void *tensor)
{
    uintptr_t address;
    uint64_t handle;
    void *blas = NULL;

    select_device(of(device)->ordinal);
    return ggml_nbytes(tensor) > 0 && ggml_backend_reg_dev_get(&registry, 0) != NULL && !cublasCreate_v2(&blas) &&
           !cuMemAddressReserve(&address, 1 << 21, 0, 0, 0) && !cuMemCreate(&handle, 1 << 21, "", 0) &&
           !cuMemMap(address, 1 << 21, 0, handle, 0) && !cuMemSetAccess(address, 1 << 21, "", 1) &&
           !cuMemRelease(handle) && !cuMemUnmap(address, 1 << 21) && !cuMemAddressFree(address, 1 << 21);
}

/* The runner of 0.12.4 to 0.24.0 makes a stream of every device and asks it for its buffer type, but allocates nothing
 * (v0.16.3:ml/backend/ggml/ggml.go:73 and 361). No CUDA call is made for either. */
static void *init_backend(device_t device, const char *parameters)
{
    struct backend *stream = calloc(1, sizeof *stream);

    (void)parameters;
    if (!stream)
        abort();
    stream->device = device;
    return stream;
}

static void *get_buffer_type(device_t device)
{
    struct gpu *gpu = of(device);

    gpu->buffers.device = device;
    return &gpu->buffers;
}

static void *none(device_t device)
{
    (void)device;
    return NULL;
}

static bool supports_op(device_t device, const void *tensor)
{
    (void)device;
    return ggml_nbytes(tensor) > 0;
}

static bool supports_buft(device_t device, void *type)
{
    (void)device;
    return type != NULL;
}

static void forget(device_t device, void *event)
{
    (void)device, (void)event;
}

static void reset(device_t device)
{
    select_device(of(device)->ordinal);
    CUDA_CHECK(cudaDeviceReset());
}

static const struct device_i members = {
    get_name, get_description, get_memory, get_type, get_props_b, init_backend, get_buffer_type, none, NULL,
    supports_op, supports_buft, offload_op, none, forget, forget,
};

static void present(struct gpu *gpu, struct reg *reg)
{
    struct device_i *first = (struct device_i *)&gpu->device;

    *first = members;
    if (layout == 'b') {
        gpu->device.b.reset = reset;
        gpu->device.b.reg = reg;
        gpu->device.b.context = gpu;
    } else {
        first->get_props = get_props_c;
        gpu->device.c.reg = reg;
        gpu->device.c.context = gpu;
    }
}

/* --- the registry -------------------------------------------------------------------------------------------------- */

static const char *reg_name(struct reg *reg)
{
    (void)reg;
    return "CUDA";
}

static size_t reg_count(struct reg *reg)
{
    (void)reg;
    return (size_t)gpu_count;
}

static device_t reg_get(struct reg *reg, size_t index)
{
    const char *order = sim_get("ggml.cuda.order");

    (void)reg;
    if (index >= (size_t)gpu_count)
        ggml_abort("ggml-cuda.cu", __LINE__, "GGML_ASSERT(index < ctx->devices.size()) failed");
    if (order && !strcmp(order, "reverse"))
        index = (size_t)gpu_count - 1 - index;
    return &gpus[index].device;
}

static struct feature *get_features(struct reg *reg)
{
    static struct feature features[4];
    int count = 0;

    (void)reg;
    if (*ggml_cuda_architectures())
        features[count++] = (struct feature){"ARCHS", ggml_cuda_architectures()};
    features[count++] = (struct feature){"USE_GRAPHS", "1"};
    features[count] = (struct feature){"PEER_MAX_BATCH_SIZE", "128"};
    return features;
}

static void *reg_address(struct reg *reg, const char *name)
{
    (void)reg;
    return strcmp(name, "ggml_backend_get_features") ? NULL : (void *)get_features;
}

static void prepare(void)
{
    const char *other = sim_get("ggml.cuda.layout");
    long long most = sim_number(GGML_CUDA_MAX_DEVICES, "ggml.cuda.devices");
    int index;

    layout = other ? *other : SIM_LAYOUT;
    gpu_count = ggml_cuda_find(gpus, GGML_CUDA_MAX_DEVICES);
    gpu_count = gpu_count < most ? gpu_count : (int)most;
    for (index = 0; index < gpu_count; index++)
        present(&gpus[index], &registry);
    registry = (struct reg){
        .api_version = (int)sim_number(GGML_BACKEND_API_VERSION, "ggml.cuda.api_version"),
        .iface = {reg_name, reg_count, reg_get, reg_address},
        .context = gpus,
    };
}

SIM_EXPORT struct reg *ggml_backend_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int code;

    if (sim_act("ggml_backend_init", &code))
        return NULL;
    pthread_once(&once, prepare);
    return &registry;
}
