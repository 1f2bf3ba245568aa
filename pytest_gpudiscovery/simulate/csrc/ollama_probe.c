/* `ollama gpu-discover`: v0.32.15:discover/native_probe_linux.go. sim.conf: actions at.ollama.probe. */
#define _GNU_SOURCE
#include "ggml.h"
#include "ollama.h"
#include "sim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refuse(const char *format, const char *text)
{
    fprintf(stderr, "Error: ");
    fprintf(stderr, format, text);
    fprintf(stderr, "\n");
    return 1;
}

#define SYMBOL(library, name) ((int (*)())dlsym(library, name))

static int driver_major(void)
{
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    char version[80] = "";

    if (!nvml || SYMBOL(nvml, "nvmlInit_v2")())
        return 0;
    SYMBOL(nvml, "nvmlSystemGetDriverVersion")(version, (unsigned)sizeof version);
    SYMBOL(nvml, "nvmlShutdown")();
    return atoi(version);
}

/* What ggml shows of the devices in DIRECTORY; how many there are, -1 where its libraries cannot be opened. */
static int ggml_devices(char **directories, int count, struct found *to, int room)
{
    char path[OLLAMA_PATH];
    void *base, *ggml;
    int found = 0, index;
    size_t at;

    snprintf(path, sizeof path, "%s/libggml-base.so", directories[0]);
    base = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    snprintf(path, sizeof path, "%s/libggml.so", directories[0]);
    ggml = base ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
    if (!ggml)
        return -1;
    for (index = 0; index < count; index++) {
        struct reg *(*load)(const char *) = (struct reg * (*)(const char *)) dlsym(ggml, "ggml_backend_load"), *reg;

        snprintf(path, sizeof path, "%s/libggml-cuda.so", directories[index]);
        if (access(path, F_OK) || !(reg = load(path)))
            continue;
        for (at = 0; at < reg->iface.get_device_count(reg) && found < room; at++) {
            struct device_c *device = reg->iface.get_device(reg, at);
            struct props_c props = {0};

            device->get_props(device, &props);
            if (!props.memory_total)
                continue;
            to[found] = (struct found){.total = props.memory_total, .free = props.memory_free};
            sim_copy(to[found].name, sizeof to[found].name, props.name);
            sim_copy(to[found].description, sizeof to[found].description, props.description);
            sim_copy(to[found++].pci, sizeof to[0].pci, props.device_id);
        }
    }
    return found;
}

/* What the driver adds: compute capability, versions. */
static const char *driver_devices(struct found *to, int count)
{
    static char problem[64];
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int version = 0, number = 0, index, device, code;

    if (!cuda)
        return "dlopen libcuda.so.1";
    if ((code = SYMBOL(cuda, "cuInit")(0))) {
        snprintf(problem, sizeof problem, "cuInit failed: %d", code);
        return problem;
    }
    SYMBOL(cuda, "cuDriverGetVersion")(&version);
    code = driver_major();
    SYMBOL(cuda, "cuDeviceGetCount")(&number);
    for (index = 0; index < number && index < count; index++) {
        if (SYMBOL(cuda, "cuDeviceGet")(&device, index))
            continue;
        SYMBOL(cuda, "cuDeviceGetAttribute")(&to[index].cc_major, 75, device);
        SYMBOL(cuda, "cuDeviceGetAttribute")(&to[index].cc_minor, 76, device);
        to[index].driver_major = version / 1000;
        to[index].driver_minor = version % 1000 / 10;
        to[index].nvidia_driver = code;
    }
    return NULL;
}

static void more(const char *name, int value) /* omitempty */
{
    if (value)
        printf(",\"%s\":%d", name, value);
}

int ollama_gpu_discover(int count, char **words)
{
    static struct found devices[OLLAMA_DEVICES];
    char *directories[OLLAMA_DIRECTORIES];
    const char *problem;
    int number = 0, index, found, code;

    ollama_go_signals();
    sim_act("ollama.probe", &code);
    for (index = 0; index + 1 < count; index += 2)
        if (!strcmp(words[index], "--lib-dir") && number < OLLAMA_DIRECTORIES)
            directories[number++] = words[index + 1];
    found = number ? ggml_devices(directories, number, devices, OLLAMA_DEVICES) : -1;
    problem = driver_devices(devices, found > 0 ? found : 0);
    if (found <= 0 && problem)
        return refuse("%s", problem);
    printf("{\"devices\":[");
    for (index = 0; index < found; index++) {
        const struct found *device = &devices[index];

        printf("%s{\"library\":\"CUDA\",\"index\":%d,\"index_matches_backend\":true,\"name\":\"%s\",\"description\":\"%s\","
               "\"device_id\":\"%s\",\"integrated_known\":true,\"total_memory\":%llu,\"free_memory\":%llu",
               index ? "," : "", index, device->name, device->description, device->pci, device->total, device->free);
        more("compute_major", device->cc_major);
        more("compute_minor", device->cc_minor);
        more("cuda_driver_major", device->driver_major);
        more("cuda_driver_minor", device->driver_minor);
        more("nvidia_driver_major", device->nvidia_driver);
        printf("}");
    }
    printf("]}\n");
    return 0;
}
