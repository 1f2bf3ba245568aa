/* What a ggml backend and libggml-base agree on, as far as discovery uses it. Two layouts exist.
 *
 * Layout b, Ollama 0.12.4 to 0.24.0: ml/backend/ggml/ggml/src/ggml-backend-impl.h (the interfaces; the same text in every
 * one of these tags) and ml/backend/ggml/ggml/include/ggml-backend.h (struct ggml_backend_dev_props; this one from
 * v0.12.7 on; before, pci_bus_id, pci_device_id and pci_domain_id stood before `library`) of github.com/ollama/ollama,
 * read at v0.16.3, v0.17.0 and v0.24.0. Ollama's own: the member `reset` at the end of the device's interface, and `id`
 * and everything behind `caps` in the properties. Its get_props leaves both memory sizes 0.
 *
 * Layout c, Ollama 0.30.0 and later: ggml/src/ggml-backend-impl.h and ggml/include/ggml-backend.h of
 * github.com/ggml-org/llama.cpp without changes (v0.32.15 names tag b10488; read as ggml 0.25.3 in vendor/llama.cpp of
 * the package llama-cpp-python 0.3.36). `mmap_support` fills a byte that was padding in older ones.
 *
 * The registry (struct reg) is the same in both, and so is GGML_BACKEND_API_VERSION, 2: a backend of the other layout is
 * not refused. What then is read wrongly: the reg and context of a device lie 8 bytes apart, the properties differ from
 * memory_total on. Sizes and offsets are those of LP64. */
#ifndef GGML_H
#define GGML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GGML_BACKEND_API_VERSION = 2, GGML_CUDA_MAX_DEVICES = 16 };
enum { DEVICE_CPU, DEVICE_GPU, DEVICE_IGPU, DEVICE_ACCEL };
enum { LOG_NONE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_CONT };

struct reg;
typedef void *device_t; /* a struct device_b or device_c */

struct reg_i {
    const char *(*get_name)(struct reg *);
    size_t (*get_device_count)(struct reg *);
    device_t (*get_device)(struct reg *, size_t);
    void *(*get_proc_address)(struct reg *, const char *);
};
struct reg {
    int api_version;
    struct reg_i iface;
    void *context;
};

/* The fifteen members that both layouts begin with. */
#define DEVICE_INTERFACE                                                \
    const char *(*get_name)(device_t);                                  \
    const char *(*get_description)(device_t);                           \
    void (*get_memory)(device_t, size_t *available, size_t *total);     \
    int (*get_type)(device_t);                                          \
    void (*get_props)(device_t, void *props);                           \
    void *(*init_backend)(device_t, const char *parameters);            \
    void *(*get_buffer_type)(device_t);                                 \
    void *(*get_host_buffer_type)(device_t);                            \
    void *(*buffer_from_host_ptr)(device_t, void *, size_t, size_t);    \
    bool (*supports_op)(device_t, const void *);                        \
    bool (*supports_buft)(device_t, void *);                            \
    bool (*offload_op)(device_t, const void *);                         \
    void *(*event_new)(device_t);                                       \
    void (*event_free)(device_t, void *);                               \
    void (*event_synchronize)(device_t, void *);

struct device_i {
    DEVICE_INTERFACE
};
struct device_b {
    DEVICE_INTERFACE
    void (*reset)(device_t);
    struct reg *reg;
    void *context;
};
struct device_c {
    DEVICE_INTERFACE
    struct reg *reg;
    void *context;
};

/* A stream and a kind of memory, as far as the runner looks at them: whose they are. `functions` are 17 and 7 in layout
 * b; layout c is never asked. */
struct backend {
    void *guid;
    void (*functions[17])(void);
    device_t device;
    void *context;
};
struct buffer_type {
    void (*functions[7])(void);
    device_t device;
    void *context;
    bool no_alloc;
};

struct caps_b {
    bool async, host_buffer, buffer_from_host_ptr, events;
};
struct props_b {
    const char *name, *description;
    size_t memory_free;
    const char *id; /* "GPU-..." */
    size_t memory_total;
    int type;
    const char *device_id; /* "0000:00:06.0" */
    struct caps_b caps;
    int driver_major, driver_minor, compute_major, compute_minor, integrated;
    const char *library;
};

struct caps_c {
    bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
};
struct props_c {
    const char *name, *description;
    size_t memory_free, memory_total;
    int type;
    const char *device_id;
    struct caps_c caps;
};

struct feature {
    const char *name, *value;
};

#define AT(type, member, offset) _Static_assert(offsetof(struct type, member) == offset, #type "." #member)
_Static_assert(sizeof(struct reg) == 48 && sizeof(struct device_i) == 120, "registry");
AT(reg, iface, 8);
AT(reg, context, 40);
AT(backend, device, 144);
AT(buffer_type, device, 56);
AT(device_b, reset, 120);
AT(device_b, reg, 128);
AT(device_b, context, 136);
AT(device_c, reg, 120);
AT(device_c, context, 128);
AT(props_b, id, 24);
AT(props_b, memory_total, 32);
AT(props_b, type, 40);
AT(props_b, device_id, 48);
AT(props_b, caps, 56);
AT(props_b, driver_major, 60);
AT(props_b, compute_major, 68);
AT(props_b, integrated, 76);
AT(props_b, library, 80);
AT(props_c, memory_total, 24);
AT(props_c, type, 32);
AT(props_c, device_id, 40);
AT(props_c, caps, 48);
_Static_assert(sizeof(struct props_b) == 88 && sizeof(struct props_c) == 56, "properties");
#undef AT

/* What libggml-base exports to backends. */
void ggml_log_internal(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));
void ggml_abort(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));
size_t ggml_nbytes(const void *tensor);
device_t ggml_backend_reg_dev_get(struct reg *reg, size_t index);
int ggml_nvml_init(void);
void ggml_nvml_release(void);
int ggml_nvml_get_device_memory(const char *uuid, size_t *available, size_t *total);

#endif
