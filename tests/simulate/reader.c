/* Reads a backend through the structures that its header documents, and through libggml-base's accessors, and prints both
 * as JSON: reader LIBRARY b|c. The declarations repeat those of ggml-backend-impl.h and ggml-backend.h (Ollama v0.16.3 for
 * b, llama.cpp for c) and know nothing of the simulator's. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct ggml_backend_reg *ggml_backend_reg_t;
typedef struct ggml_backend_device *ggml_backend_dev_t;

struct ggml_backend_dev_caps {
    bool async;
    bool host_buffer;
    bool buffer_from_host_ptr;
    bool events;
#ifndef OLLAMA
    bool mmap_support;
#endif
};

struct ggml_backend_dev_props {
    const char *name;
    const char *description;
    size_t memory_free;
#ifdef OLLAMA
    const char *id;
#endif
    size_t memory_total;
    enum { CPU, GPU } type;
    const char *device_id;
    struct ggml_backend_dev_caps caps;
#ifdef OLLAMA
    int driver_major;
    int driver_minor;
    int compute_major;
    int compute_minor;
    int integrated;
    const char *library;
#endif
};

struct ggml_backend_device_i {
    const char *(*get_name)(ggml_backend_dev_t);
    const char *(*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t *, size_t *);
    int (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, struct ggml_backend_dev_props *);
    void *(*init_backend)(ggml_backend_dev_t, const char *);
    void *(*get_buffer_type)(ggml_backend_dev_t);
    void *(*get_host_buffer_type)(ggml_backend_dev_t);
    void *(*buffer_from_host_ptr)(ggml_backend_dev_t, void *, size_t, size_t);
    bool (*supports_op)(ggml_backend_dev_t, const void *);
    bool (*supports_buft)(ggml_backend_dev_t, void *);
    bool (*offload_op)(ggml_backend_dev_t, const void *);
    void *(*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, void *);
    void (*event_synchronize)(ggml_backend_dev_t, void *);
#ifdef OLLAMA
    void (*reset)(ggml_backend_dev_t);
#endif
};

struct ggml_backend_device {
    struct ggml_backend_device_i iface;
    ggml_backend_reg_t reg;
    void *context;
};

struct ggml_backend_reg_i {
    const char *(*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    void *(*get_proc_address)(ggml_backend_reg_t, const char *);
};

struct ggml_backend_reg {
    int api_version;
    struct ggml_backend_reg_i iface;
    void *context;
};

struct ggml_backend_feature {
    const char *name;
    const char *value;
};

static bool mapped(const char *name)
{
    FILE *file = fopen("/proc/self/maps", "r");
    char line[4096];
    bool found = false;

    while (file && fgets(line, sizeof line, file))
        found |= strstr(line, name) != NULL;
    if (file)
        fclose(file);
    return found;
}

static void device(void *library, ggml_backend_reg_t reg, ggml_backend_dev_t dev)
{
    union {
        struct ggml_backend_dev_props props;
        char room[512]; /* a libggml-base of the other layout clears more than there is */
    } both;
    size_t available = 1, total = 1;
    void (*get_props)(ggml_backend_dev_t, struct ggml_backend_dev_props *) = dlsym(library, "ggml_backend_dev_get_props");
    const char *(*name)(ggml_backend_dev_t) = dlsym(library, "ggml_backend_dev_name");
    ggml_backend_reg_t (*back)(ggml_backend_dev_t) = dlsym(library, "ggml_backend_dev_backend_reg");
    bool before = mapped("libnvidia-ml");

    memset(&both, 0xee, sizeof both);
    get_props(dev, &both.props);
    printf("{\"name\": \"%s\", \"accessor\": \"%s\", \"description\": \"%s\", \"type\": %d, \"device_id\": \"%s\",\n",
           dev->iface.get_name(dev), name(dev), both.props.description, (int)both.props.type, both.props.device_id);
    printf(" \"props_memory\": [%zu, %zu], \"reg\": %s, \"accessor_reg\": %s, \"caps\": [%d, %d, %d, %d],\n",
           both.props.memory_free, both.props.memory_total, dev->reg == reg ? "true" : "false", back(dev) == reg ? "true" : "false",
           both.props.caps.async, both.props.caps.host_buffer, both.props.caps.buffer_from_host_ptr, both.props.caps.events);
#ifdef OLLAMA
    printf(" \"id\": \"%s\", \"library\": \"%s\", \"driver\": [%d, %d], \"compute\": [%d, %d], \"integrated\": %d,\n",
           both.props.id, both.props.library, both.props.driver_major, both.props.driver_minor, both.props.compute_major, both.props.compute_minor,
           both.props.integrated);
#endif
    dev->iface.get_memory(dev, &available, &total);
    printf(" \"memory\": [%zu, %zu], \"nvml\": [%s, %s]}", available, total, before ? "true" : "false",
           mapped("libnvidia-ml") ? "true" : "false");
}

int main(int count, char **words)
{
    void *library = dlopen(count > 1 ? words[1] : "", RTLD_NOW | RTLD_LOCAL);
    ggml_backend_reg_t (*init)(void) = library ? dlsym(library, "ggml_backend_init") : NULL;
    ggml_backend_reg_t reg = init ? init() : NULL;
    struct ggml_backend_feature *(*features)(ggml_backend_reg_t);
    size_t index;

    if (!reg) {
        printf("{\"error\": \"%s\"}\n", !library ? "dlopen" : !init ? "no init" : "NULL");
        return 0;
    }
    features = reg->iface.get_proc_address(reg, "ggml_backend_get_features");
    printf("{\"api_version\": %d, \"name\": \"%s\", \"unknown\": %s, \"features\": {", reg->api_version,
           reg->iface.get_name(reg), reg->iface.get_proc_address(reg, "no_such_thing") ? "true" : "false");
    for (index = 0; features && features(reg)[index].name; index++)
        printf("%s\"%s\": \"%s\"", index ? ", " : "", features(reg)[index].name, features(reg)[index].value);
    printf("}, \"devices\": [");
    for (index = 0; index < reg->iface.get_device_count(reg); index++) {
        printf("%s", index ? ", " : "");
        device(library, reg, reg->iface.get_device(reg, index));
    }
    printf("]}\n");
    return 0;
}
