/* The runtime's device code: containers that a library registers before main are loaded at the first kernel, or with
 * CUDA_MODULE_LOADING=EAGER (or CUDA_FORCE_PTX_JIT) all at the first call that needs a driver. */
#define _GNU_SOURCE
#include "fatbin.h"
#include "modules.h"
#include "sim.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <strings.h>

enum { MODULES = 1024 };
static const struct wrapper *modules[MODULES];
static int registered, loaded;

SIM_EXPORT void **__cudaRegisterFatBinary(const struct wrapper *wrapper)
{
    if (registered < MODULES)
        modules[registered++] = wrapper;
    return (void **)&modules[registered - 1];
}

SIM_EXPORT void __cudaRegisterFatBinaryEnd(void **handle)
{
    (void)handle;
}

SIM_EXPORT void __cudaUnregisterFatBinary(void **handle)
{
    (void)handle;
}

void load_modules_now(void *driver)
{
    const char *loading = getenv("CUDA_MODULE_LOADING"), *forced = getenv("CUDA_FORCE_PTX_JIT");
    int eager = (loading && !strcasecmp(loading, "EAGER")) || (forced && *forced && *forced != '0');
    int (*load)(void **, const void *, int *, void **, unsigned, int *, void **, unsigned);
    void *library;

    if (!eager || !(load = (int (*)(void **, const void *, int *, void **, unsigned, int *, void **, unsigned))dlsym(
                        driver, "cuLibraryLoadData")))
        return;
    while (loaded < registered)
        load(&library, modules[loaded++]->data, NULL, NULL, 0, NULL, NULL, 0);
}
