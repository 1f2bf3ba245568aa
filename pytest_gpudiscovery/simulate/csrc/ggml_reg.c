/* libggml of layout c: the registry, as ggml/src/ggml-backend-reg.cpp and ggml-backend-dl.cpp of llama.cpp have it. A
 * backend is opened with RTLD_NOW | RTLD_LOCAL; what is wrong with it is said unless the caller wants silence. */
#define _GNU_SOURCE
#include "ggml.h"
#include "sim.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *ggml_backend_reg_name(struct reg *);
size_t ggml_backend_reg_dev_count(struct reg *);

enum { BACKENDS = 16, DEVICES = 64 };
static struct reg *backends[BACKENDS];
static device_t devices[DEVICES];
static size_t backend_count, device_count;

SIM_EXPORT void ggml_backend_device_register(device_t device)
{
    if (device_count < DEVICES)
        devices[device_count++] = device;
}

SIM_EXPORT void ggml_backend_register(struct reg *reg)
{
    size_t index;

    if (!reg || backend_count == BACKENDS)
        return;
    backends[backend_count++] = reg;
    for (index = 0; index < ggml_backend_reg_dev_count(reg); index++)
        ggml_backend_device_register(ggml_backend_reg_dev_get(reg, index));
}

#define REFUSE(level, ...)                        \
    do {                                          \
        if (!silent)                              \
            ggml_log_internal(level, __VA_ARGS__); \
        dlclose(handle);                          \
        return NULL;                              \
    } while (0)

static struct reg *load(const char *path, bool silent)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    int (*score)(void);
    struct reg *(*init)(void), *reg;

    if (!handle) {
        if (!silent)
            ggml_log_internal(LOG_ERROR, "load_backend: failed to load %s: %s\n", path, dlerror());
        return NULL;
    }
    score = (int (*)(void))dlsym(handle, "ggml_backend_score");
    if (score && !score())
        REFUSE(LOG_INFO, "load_backend: backend %s is not supported on this system\n", path);
    init = (struct reg * (*)(void)) dlsym(handle, "ggml_backend_init");
    if (!init)
        REFUSE(LOG_ERROR, "load_backend: failed to find ggml_backend_init in %s\n", path);
    reg = init();
    if (!reg)
        REFUSE(LOG_ERROR, "load_backend: failed to initialize backend from %s: ggml_backend_init returned NULL\n",
               path);
    if (reg->api_version != GGML_BACKEND_API_VERSION)
        REFUSE(LOG_ERROR,
               "load_backend: failed to initialize backend from %s: incompatible API version (backend: %d, current: "
               "%d)\n",
               path, reg->api_version, GGML_BACKEND_API_VERSION);
    ggml_log_internal(LOG_INFO, "load_backend: loaded %s backend from %s\n", ggml_backend_reg_name(reg), path);
    ggml_backend_register(reg);
    return reg;
}

SIM_EXPORT struct reg *ggml_backend_load(const char *path)
{
    return load(path, false);
}

/* The variant of libggml-NAME-*.so in FOLDER with the best score, else libggml-NAME.so there. */
static void load_best(const char *folder, const char *name)
{
    char start[64], path[4096], best[4096] = "";
    DIR *open = opendir(folder);
    struct dirent *entry;
    int most = 0;

    snprintf(start, sizeof start, "libggml-%s-", name);
    while (open && (entry = readdir(open))) {
        size_t length = strlen(entry->d_name);
        int (*score)(void), found;
        void *handle;

        if (strncmp(entry->d_name, start, strlen(start)) || length < 3 || strcmp(entry->d_name + length - 3, ".so"))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (!(handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
            continue;
        score = (int (*)(void))dlsym(handle, "ggml_backend_score");
        if (score && (found = score()) > most) {
            most = found;
            strcpy(best, path);
        }
        dlclose(handle);
    }
    if (open)
        closedir(open);
    if (!*best)
        snprintf(best, sizeof best, "%s/libggml-%s.so", folder, name);
    load(best, true);
}

SIM_EXPORT void ggml_backend_load_all_from_path(const char *folder)
{
    static const char *const names[] = {"blas", "cann", "cuda", "hip", "vulkan", "rpc", "cpu"};
    const char *more = getenv("GGML_BACKEND_PATH");
    size_t index;

    for (index = 0; index < sizeof names / sizeof *names; index++)
        load_best(folder, names[index]);
    if (more)
        ggml_backend_load(more);
}

SIM_EXPORT size_t ggml_backend_reg_count(void)
{
    return backend_count;
}

SIM_EXPORT struct reg *ggml_backend_reg_get(size_t index)
{
    if (index >= backend_count)
        ggml_abort("ggml-backend-reg.cpp", __LINE__, "GGML_ASSERT(index < ggml_backend_reg_count()) failed");
    return backends[index];
}

SIM_EXPORT size_t ggml_backend_dev_count(void)
{
    return device_count;
}

SIM_EXPORT device_t ggml_backend_dev_get(size_t index)
{
    if (index >= device_count)
        ggml_abort("ggml-backend-reg.cpp", __LINE__, "GGML_ASSERT(index < ggml_backend_dev_count()) failed");
    return devices[index];
}
