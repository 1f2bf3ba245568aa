/* The part of ggml that is linked into the runner: it opens backends, silently, as a build with NDEBUG does. */
#define _GNU_SOURCE
#include "ggml.h"
#include "ollama.h"
#include "sim.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BACKENDS = 16 };
static struct reg *backends[BACKENDS];
static size_t backend_count;

static void load(const char *path, bool silent)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    struct reg *(*init)(void), *reg;
    int (*score)(void);

    if (!handle) {
        if (!silent)
            fprintf(stderr, "load_backend: failed to load %s: %s\n", path, dlerror());
        return;
    }
    score = (int (*)(void))dlsym(handle, "ggml_backend_score");
    init = (struct reg * (*)(void)) dlsym(handle, "ggml_backend_init");
    if ((score && !score()) || !init || !(reg = init()) || reg->api_version != GGML_BACKEND_API_VERSION) {
        dlclose(handle);
        return;
    }
    fprintf(stderr, "load_backend: loaded %s backend from %s\n", reg->iface.get_name(reg), path);
    if (backend_count < BACKENDS)
        backends[backend_count++] = reg;
}

static void load_best(const char *folder, const char *name)
{
    char start[64], path[OLLAMA_PATH], best[OLLAMA_PATH] = "";
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
    snprintf(path, sizeof path, "%s/libggml-%s.so", folder, name);
    if (*best || !access(path, F_OK))
        load(*best ? best : path, true);
}

void ollama_load_all(const char *path)
{
    static const char *const names[] = {"blas", "cuda", "hip", "vulkan", "cpu"};
    const char *more = getenv("GGML_BACKEND_PATH");
    size_t index;

    for (index = 0; index < sizeof names / sizeof *names; index++)
        load_best(path, names[index]);
    if (more)
        load(more, false);
}

static void describe(struct device_b *device, struct found *to)
{
    struct props_b props = {0};
    const char *compute = sim_get("ollama.info.compute"), *pci = sim_get("ollama.info.pci");
    size_t available = 0, total = 0;

    device->init_backend(device, NULL);
    device->get_buffer_type(device);
    device->get_props(device, &props);
    device->get_memory(device, &available, &total);
    *to = (struct found){.total = total, .free = available, .cc_major = props.compute_major,
                         .cc_minor = props.compute_minor, .driver_major = props.driver_major,
                         .driver_minor = props.driver_minor};
    sim_copy(to->id, sizeof to->id, props.id);
    sim_copy(to->library, sizeof to->library, props.library);
    sim_copy(to->name, sizeof to->name, props.name);
    sim_copy(to->description, sizeof to->description, props.description);
    sim_copy(to->pci, sizeof to->pci, pci ? pci : props.device_id);
    if (compute)
        sscanf(compute, "%d.%d", &to->cc_major, &to->cc_minor);
}

size_t ollama_devices(struct found *to, size_t room)
{
    size_t found = 0, index, at;
    long long most = sim_number((long long)room, "ollama.info.devices");

    for (index = 0; index < backend_count; index++)
        for (at = 0; at < backends[index]->iface.get_device_count(backends[index]); at++) {
            struct device_b *device = backends[index]->iface.get_device(backends[index], at);

            if (device->get_type(device) == DEVICE_GPU && found < room && (long long)found < most)
                describe(device, &to[found++]);
        }
    return found;
}
