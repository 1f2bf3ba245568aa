/* Virtual memory management of the driver API, as far as ggml's pool uses it: address space is reserved in this process,
 * a handle is its size. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdint.h>
#include <sys/mman.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

SIM_EXPORT int cuMemAddressReserve(uintptr_t *address, size_t size, size_t alignment, uintptr_t wanted, uint64_t flags)
{
    void *found;

    (void)alignment, (void)wanted, (void)flags;
    SIM_GATE("cuMemAddressReserve");
    if (!address || !size)
        return INVALID_VALUE;
    found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *address = (uintptr_t)found;
    return found == MAP_FAILED ? OUT_OF_MEMORY : OK;
}

SIM_EXPORT int cuMemAddressFree(uintptr_t address, size_t size)
{
    return munmap((void *)address, size) ? INVALID_VALUE : OK;
}

SIM_EXPORT int cuMemCreate(uint64_t *handle, size_t size, const void *property, uint64_t flags)
{
    (void)flags;
    SIM_GATE("cuMemCreate");
    if (!handle || !property)
        return INVALID_VALUE;
    *handle = size;
    return OK;
}

SIM_EXPORT int cuMemRelease(uint64_t handle)
{
    return handle ? OK : INVALID_VALUE;
}

SIM_EXPORT int cuMemMap(uintptr_t address, size_t size, size_t offset, uint64_t handle, uint64_t flags)
{
    (void)flags;
    SIM_GATE("cuMemMap");
    return address && offset + size <= handle ? OK : INVALID_VALUE;
}

SIM_EXPORT int cuMemUnmap(uintptr_t address, size_t size)
{
    return mprotect((void *)address, size, PROT_NONE) ? INVALID_VALUE : OK;
}

SIM_EXPORT int cuMemSetAccess(uintptr_t address, size_t size, const void *access, size_t count)
{
    (void)access, (void)count;
    return mprotect((void *)address, size, PROT_READ | PROT_WRITE) ? INVALID_VALUE : OK;
}
