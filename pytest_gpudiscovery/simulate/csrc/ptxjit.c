/* libnvidia-ptxjitcompiler: the driver opens it for PTX and fails with 221 when it is not there. Compiling costs what
 * sim.conf says (jit.seconds for each module), on this thread, at full speed and in silence. */
#include "sim.h"

#include <time.h>

SIM_EXPORT int __cuda_CallJitEntryPoint(void)
{
    long long seconds = sim_number(2, "jit.seconds");
    struct timespec begun, now;
    volatile unsigned long turns = 0;

    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        while (++turns % 4096)
            ;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - begun.tv_sec < seconds);
    return 0;
}
