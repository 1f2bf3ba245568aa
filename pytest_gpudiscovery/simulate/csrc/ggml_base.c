/* libggml-base: what backends need of it, and the accessors that read a backend's structures. Its own layout is
 * SIM_LAYOUT ('b' or 'c', ggml.h), as compiled in; what a backend presents may differ (ggml_cuda.c). */
#define _GNU_SOURCE
#include "ggml.h"
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if SIM_LAYOUT == 'b'
typedef struct device_b device;
typedef struct props_b props;
#else
typedef struct device_c device;
typedef struct props_c props;
#endif

/* --- logging and the end ------------------------------------------------------------------------------------------- */

static void (*sink)(int level, const char *text, void *data);
static void *sink_data;

SIM_EXPORT void ggml_log_set(void (*callback)(int, const char *, void *), void *data)
{
    sink = callback;
    sink_data = data;
}

/* Without a callback every level goes to stderr, as in a build with NDEBUG. */
SIM_EXPORT void ggml_log_internal(int level, const char *format, ...)
{
    char text[2048];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (sink)
        sink(level, text, sink_data);
    else
        fputs(text, stderr);
}

SIM_EXPORT void ggml_abort(const char *file, int line, const char *format, ...)
{
    char text[2048];
    va_list list;
    int used = snprintf(text, sizeof text, "%s:%d: ", file, line);

    fflush(stdout);
    va_start(list, format);
    vsnprintf(text + used, sizeof text - (size_t)used, format, list);
    va_end(list);
    fprintf(stderr, "%s\n", text);
    abort();
}

#define NEED(what) \
    if (!(what))   \
    ggml_abort("ggml-backend.cpp", __LINE__, "GGML_ASSERT(%s) failed", #what)

/* --- tensors, which discovery never makes -------------------------------------------------------------------------- */

SIM_EXPORT size_t ggml_nbytes(const void *tensor)
{
    NEED(tensor);
    return 0;
}

/* --- accessors ----------------------------------------------------------------------------------------------------- */

SIM_EXPORT const char *ggml_backend_reg_name(struct reg *reg)
{
    NEED(reg);
    return reg->iface.get_name(reg);
}

SIM_EXPORT size_t ggml_backend_reg_dev_count(struct reg *reg)
{
    NEED(reg);
    return reg->iface.get_device_count(reg);
}

SIM_EXPORT device_t ggml_backend_reg_dev_get(struct reg *reg, size_t index)
{
    NEED(reg);
    return reg->iface.get_device(reg, index);
}

SIM_EXPORT void *ggml_backend_reg_get_proc_address(struct reg *reg, const char *name)
{
    NEED(reg);
    return reg->iface.get_proc_address ? reg->iface.get_proc_address(reg, name) : NULL;
}

SIM_EXPORT const char *ggml_backend_dev_name(device *dev)
{
    NEED(dev);
    return dev->get_name(dev);
}

SIM_EXPORT const char *ggml_backend_dev_description(device *dev)
{
    NEED(dev);
    return dev->get_description(dev);
}

SIM_EXPORT void ggml_backend_dev_memory(device *dev, size_t *available, size_t *total)
{
    NEED(dev);
    dev->get_memory(dev, available, total);
}

SIM_EXPORT int ggml_backend_dev_type(device *dev)
{
    NEED(dev);
    return dev->get_type(dev);
}

SIM_EXPORT void ggml_backend_dev_get_props(device *dev, props *to)
{
    memset(to, 0, sizeof *to);
    dev->get_props(dev, to);
}

SIM_EXPORT struct reg *ggml_backend_dev_backend_reg(device *dev)
{
    NEED(dev);
    return dev->reg;
}

#if SIM_LAYOUT == 'b'
SIM_EXPORT void ggml_backend_dev_reset(device *dev)
{
    if (dev && dev->reset)
        dev->reset(dev);
}
#endif
