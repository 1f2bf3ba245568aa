/* A preloaded sharing shim in the manner of HAMi-core's libvgpu.so: it stands before cuInit and cuMemGetInfo_v2, says so
 * on stderr, and shows less memory than there is. Its own actions are those of `shim.cuInit`. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *next(const char *name)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

    return driver ? dlsym(driver, name) : NULL;
}

SIM_EXPORT int cuInit(unsigned flags)
{
    int (*real)(unsigned) = (int (*)(unsigned))next("cuInit");

    fprintf(stderr, "[HAMI-core Msg]: Initializing.....\n");
    SIM_GATE("shim.cuInit");
    return real ? real(flags) : 999;
}

SIM_EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total)
{
    int (*real)(size_t *, size_t *) = (int (*)(size_t *, size_t *))next("cuMemGetInfo_v2");
    size_t limit = (size_t)sim_number(0, "shim.memory");
    int code = real ? real(available, total) : 999;

    if (!code && limit && limit < *total) {
        *total = limit;
        *available = limit < *available ? limit : *available;
    }
    return code;
}
