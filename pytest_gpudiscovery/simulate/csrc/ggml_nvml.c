/* The part of libggml-base that Ollama added in 0.12.6: memory of a GPU by its UUID, through an NVML that is opened at
 * the first question and closed after each (ml/backend/ggml/ggml/src/mem_nvml.cpp, v0.16.3). */
#define _GNU_SOURCE
#include "ggml.h"
#include "sim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { NOT_FOUND = 6, UNINITIALIZED = 1, NOT_SUPPORTED = 3 };

struct memory {
    unsigned long long total, available, used;
};

static struct {
    void *handle;
    int (*init)(void), (*shutdown)(void);
    int (*by_uuid)(const char *, void **);
    int (*memory)(void *, struct memory *);
    int (*name)(void *, char *, unsigned);
    const char *(*text)(int);
} nvml;

static int bind(void)
{
    return (nvml.init = (int (*)(void))dlsym(nvml.handle, "nvmlInit_v2")) &&
           (nvml.shutdown = (int (*)(void))dlsym(nvml.handle, "nvmlShutdown")) &&
           (nvml.by_uuid = (int (*)(const char *, void **))dlsym(nvml.handle, "nvmlDeviceGetHandleByUUID")) &&
           (nvml.memory = (int (*)(void *, struct memory *))dlsym(nvml.handle, "nvmlDeviceGetMemoryInfo")) &&
           (nvml.name = (int (*)(void *, char *, unsigned))dlsym(nvml.handle, "nvmlDeviceGetName"));
}

static void drop(void)
{
    dlclose(nvml.handle);
    nvml.handle = NULL;
}

SIM_EXPORT int ggml_nvml_init(void)
{
    int code;

    if (nvml.handle)
        return 0;
    /* WSL's first, as Ollama does */
    if (!(nvml.handle = dlopen("/usr/lib/wsl/lib/libnvidia-ml.so.1", RTLD_LAZY)) &&
        !(nvml.handle = dlopen("libnvidia-ml.so.1", RTLD_LAZY))) {
        ggml_log_internal(LOG_INFO, "%s unable to load libnvidia-ml: %s\n", __func__, dlerror());
        return NOT_FOUND;
    }
    nvml.text = (const char *(*)(int))dlsym(nvml.handle, "nvmlErrorString");
    if (!bind()) {
        ggml_log_internal(LOG_INFO, "%s unable to locate required symbols in libnvidia-ml.so", __func__);
        drop();
        return NOT_FOUND;
    }
    if ((code = nvml.init())) {
        ggml_log_internal(LOG_INFO, "%s unable to initialize NVML: %s\n", __func__, nvml.text ? nvml.text(code) : "");
        drop();
    }
    return code;
}

SIM_EXPORT void ggml_nvml_release(void)
{
    if (!nvml.handle)
        return;
    nvml.shutdown();
    drop();
}

/* Memory of the machine, in bytes, for a GPU that has none of its own. */
static size_t meminfo(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    size_t found = 0, kib;

    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key)) && sscanf(line + strlen(key), " %zu kB", &kib) == 1)
            found = kib * 1024;
    if (file)
        fclose(file);
    return found;
}

SIM_EXPORT int ggml_nvml_get_device_memory(const char *uuid, size_t *available, size_t *total)
{
    struct memory memory = {0, 0, 0};
    void *device;
    int code;

    if (!nvml.handle)
        return UNINITIALIZED;
    if ((code = nvml.by_uuid(uuid, &device)))
        return code;
    if (!(code = nvml.memory(device, &memory))) {
        *available = memory.available;
        *total = memory.total;
    } else if (code == NOT_SUPPORTED && meminfo("MemTotal:")) {
        *total = meminfo("MemTotal:");
        *available = meminfo("MemAvailable:");
        code = 0;
    }
    return code;
}
