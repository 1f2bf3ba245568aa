/* The ollama binary of a simulated install: it says its version, and can do nothing else yet. */
#include "sim.h"

#include <stdio.h>
#include <string.h>

int main(int count, char **words)
{
    const char *version = sim_get("ollama.version");

    if (count == 2 && (!strcmp(words[1], "--version") || !strcmp(words[1], "-v"))) {
        printf("ollama version is %s\n", version ? version : "0.0.0");
        return 0;
    }
    fprintf(stderr, "simulated ollama: only --version is simulated\n");
    return 1;
}
