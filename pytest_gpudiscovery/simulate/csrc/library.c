/* cuLibraryLoadData: what becomes of a container of device code. Machine code for the GPU is taken as it is, PTX is
 * compiled (libnvidia-ptxjitcompiler), nothing of both is no error before the first kernel. Rules as measured on an H100
 * and written down in loader/kernels.py. */
#define _GNU_SOURCE
#include "fatbin.h"
#include "sim.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_IMAGE = 200, JIT_COMPILER_NOT_FOUND = 221, CC_MAJOR = 75, CC_MINOR = 76 };

int cuDeviceGetAttribute(int *value, int attribute, int device);

static int runs(const struct entry *entry, int major, int minor)
{
    int own = (int)entry->sm / 10, step = (int)entry->sm % 10;

    if (entry->kind != SASS)
        return 0;
    return entry->flags & ARCHITECTURE ? own == major && step == minor : own == major && step <= minor;
}

static int compiles(const struct entry *entry, int major, int minor)
{
    int own = (int)entry->sm, cc = major * 10 + minor;

    if (entry->kind != PTX || entry->major * 10 + entry->minor > sim_number(90, "driver.ptx"))
        return 0;
    if (entry->flags & ARCHITECTURE)
        return own == cc;
    return own <= cc && (!(entry->flags & FAMILY) || own / 10 == major);
}

static int compile(void)
{
    void *compiler = dlopen("libnvidia-ptxjitcompiler.so.1", RTLD_NOW | RTLD_LOCAL);
    int (*call)(void) = compiler ? (int (*)(void))dlsym(compiler, "__cuda_CallJitEntryPoint") : NULL;

    return call ? call() : JIT_COMPILER_NOT_FOUND;
}

SIM_EXPORT int cuLibraryLoadData(void **library, const void *code, int *jit_options, void **jit_values,
                                 unsigned jit_count, int *options, void **values, unsigned count)
{
    const struct container *head = code;
    const char *at = (const char *)code + sizeof *head, *end = at + (head ? head->size : 0);
    const char *forced = getenv("CUDA_FORCE_PTX_JIT");
    int major, minor, native = 0, ptx = 0;

    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    SIM_GATE("cuLibraryLoadData");
    if (!head || head->magic != CONTAINER_MAGIC)
        return INVALID_IMAGE;
    *library = (void *)code;
    if (cuDeviceGetAttribute(&major, CC_MAJOR, 0) || cuDeviceGetAttribute(&minor, CC_MINOR, 0))
        return OK;
    while (at + sizeof(struct entry) <= end) {
        const struct entry *entry = (const struct entry *)at;

        native |= runs(entry, major, minor);
        ptx |= compiles(entry, major, minor);
        at += entry->head + entry->size;
    }
    if (native && !(forced && *forced && strcmp(forced, "0")))
        return OK;
    return ptx ? compile() : OK;
}
