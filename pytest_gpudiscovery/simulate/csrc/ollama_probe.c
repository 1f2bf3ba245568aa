/* `ollama gpu-discover` and the children of discovery of 0.32.15. */
#include "ollama.h"

#include <stdio.h>

size_t ollama_bootstrap_c(const char *directory, const char *const *extra, double end, struct found *to, size_t room)
{
    (void)directory, (void)extra, (void)end, (void)to, (void)room;
    return 0;
}

int ollama_gpu_discover(int count, char **words)
{
    (void)count, (void)words;
    printf("{\"devices\":null}\n");
    return 0;
}
