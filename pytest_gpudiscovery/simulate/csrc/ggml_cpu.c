/* A variant of the CPU backend, libggml-cpu-NAME.so. All variants are this one library; NAME is read from its own file
 * name, its score from sim.conf (ggml.score.NAME; 0: the processor lacks something). Actions: at.ggml_backend_score,
 * at.ggml_backend_score.NAME and constructor.libggml-cpu-NAME.so. */
#define _GNU_SOURCE
#include "ggml.h"
#include "sim.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char variant[64];
static struct reg registry;
#if SIM_LAYOUT == 'b'
static struct device_b cpu;
#else
static struct device_c cpu;
#endif

static const char *name_of(void)
{
    const char *from = strstr(sim_own_name(), "libggml-cpu-");

    sim_copy(variant, sizeof variant, from ? from + strlen("libggml-cpu-") : "");
    if (strstr(variant, ".so"))
        *strstr(variant, ".so") = '\0';
    return variant;
}

SIM_EXPORT int ggml_backend_score(void)
{
    char action[96];
    int code;

    snprintf(action, sizeof action, "ggml_backend_score.%s", name_of());
    if (sim_act("ggml_backend_score", &code) || sim_act(action, &code))
        return code;
    return (int)sim_number(1, "ggml.score.%s", variant);
}

static const char *get_name(device_t device)
{
    (void)device;
    return "CPU";
}

static const char *get_description(device_t device)
{
    const char *found = sim_get("cpu.name");

    (void)device;
    return found ? found : "CPU";
}

static void get_memory(device_t device, size_t *available, size_t *total)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    (void)device;
    *available = *total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
}

static int get_type(device_t device)
{
    (void)device;
    return DEVICE_CPU;
}

static void get_props(device_t device, void *to)
{
#if SIM_LAYOUT == 'b'
    struct props_b *props = to;

    props->library = "CPU";
#else
    struct props_c *props = to;
#endif
    props->name = get_name(device);
    props->description = get_description(device);
    props->type = DEVICE_CPU;
    get_memory(device, &props->memory_free, &props->memory_total);
    props->caps.buffer_from_host_ptr = true;
}

static const char *reg_name(struct reg *reg)
{
    (void)reg;
    return "CPU";
}

static size_t reg_count(struct reg *reg)
{
    (void)reg;
    return 1;
}

static device_t reg_get(struct reg *reg, size_t index)
{
    (void)reg;
    if (index)
        ggml_abort("ggml-cpu.cpp", __LINE__, "GGML_ASSERT(index == 0) failed");
    return &cpu;
}

static void *reg_address(struct reg *reg, const char *name)
{
    (void)reg, (void)name;
    return NULL;
}

SIM_EXPORT struct reg *ggml_backend_init(void)
{
    int code;

    if (sim_act("cpu.ggml_backend_init", &code))
        return NULL;
    cpu.get_name = get_name;
    cpu.get_description = get_description;
    cpu.get_memory = get_memory;
    cpu.get_type = get_type;
    cpu.get_props = get_props;
    cpu.reg = &registry;
    registry = (struct reg){GGML_BACKEND_API_VERSION, {reg_name, reg_count, reg_get, reg_address}, NULL};
    return &registry;
}
