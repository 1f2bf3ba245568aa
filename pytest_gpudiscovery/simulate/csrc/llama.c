/* libllama: a library that llama-server is linked with, no more. */
#include "sim.h"

SIM_EXPORT const char *llama_print_system_info(void)
{
    return "";
}
