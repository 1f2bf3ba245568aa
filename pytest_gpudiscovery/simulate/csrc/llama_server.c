/* The llama-server of a simulated install: it says its version, and can do nothing else yet. */
#include "sim.h"

#include <stdio.h>
#include <string.h>

size_t ggml_backend_reg_count(void);
void ggml_log_internal(int level, const char *format, ...);
const char *llama_print_system_info(void);

int main(int count, char **words)
{
    const char *version = sim_get("llama.version");

    if (count == 2 && !strcmp(words[1], "--version")) {
        fprintf(stderr, "version: %s\nbuilt with a C compiler for a simulated host%s\n", version ? version : "0",
                llama_print_system_info());
        return 0;
    }
    ggml_log_internal(4, "simulated llama-server: only --version is simulated (%zu backends)\n",
                      ggml_backend_reg_count());
    return 1;
}
