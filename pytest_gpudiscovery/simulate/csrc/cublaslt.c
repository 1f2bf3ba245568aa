/* libcublasLt of CUDA SIM_CUDA. With SIM_IFUNC a function of it is chosen at relocation, by a resolver that never
 * returns: nothing of libc can be called there, so it cannot read sim.conf, and waits in a bare system call. */
#define _GNU_SOURCE
#include "fatbin.h"
#include "sim.h"

#include <stdlib.h>
#ifdef SIM_IFUNC
#include <sys/syscall.h>
#endif

SIM_ROOM(code, 8 * 1024);

static int create(void **handle)
{
    *handle = calloc(1, 64);
    return *handle ? 0 : 3; /* CUBLAS_STATUS_ALLOC_FAILED */
}

#ifdef SIM_IFUNC
/* It ends by itself after ten minutes: a forgotten victim must not stay on the machine for ever. */
static int (*resolve(void))(void **)
{
    struct {
        long seconds, nanoseconds;
    } limit = {600, 0};
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(SYS_nanosleep), "D"(&limit), "S"(0)
                     : "rcx", "r11", "memory");
    return create;
}

SIM_EXPORT int cublasLtCreate(void **handle) __attribute__((ifunc("resolve")));
#else
SIM_EXPORT int cublasLtCreate(void **handle)
{
    return create(handle);
}
#endif

SIM_EXPORT int cublasLtDestroy(void *handle)
{
    free(handle);
    return 0;
}
