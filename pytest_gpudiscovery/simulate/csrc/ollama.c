/* The ollama binary of a simulated install: its version, the runner, the native probe and the server. */
#define _GNU_SOURCE
#include "ollama.h"
#include "sim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *ollama_exe(void)
{
    static char path[OLLAMA_PATH];

    if (!*path && !realpath("/proc/self/exe", path))
        abort();
    return path;
}

/* v0.16.3:ml/path.go:16-56; 0.30 and later look in other places as well, which no simulated release has. */
const char *ollama_lib(void)
{
    static char found[OLLAMA_PATH];
    char folder[OLLAMA_PATH], path[OLLAMA_PATH + 32];
    struct stat status;

    if (*found)
        return found;
    sim_copy(folder, sizeof folder, ollama_exe());
    *strrchr(folder, '/') = '\0';
    snprintf(path, sizeof path, "%s/../lib/ollama", folder);
    if (!stat(path, &status) && realpath(path, found))
        return found;
    sim_copy(found, sizeof found, folder);
    return found;
}

static void fault(int number)
{
    static const char *const names[] = {[SIGABRT] = "SIGABRT: abort", [SIGSEGV] = "SIGSEGV: segmentation violation",
                                        [SIGBUS] = "SIGBUS: bus error", [SIGILL] = "SIGILL: illegal instruction",
                                        [SIGFPE] = "SIGFPE: floating-point exception"};

    dprintf(2, "%s\nPC=0x0 m=0 sigcode=0\nsignal arrived during cgo execution\n\ngoroutine 1 [syscall]:\n", names[number]);
    _exit(2);
}

void ollama_go_signals(void)
{
    static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    size_t index;

    for (index = 0; index < sizeof numbers / sizeof *numbers; index++)
        signal(numbers[index], fault);
}

int main(int count, char **words)
{
    const char *command = count > 1 ? words[1] : "";

    if (!getenv("HOME") || !*getenv("HOME")) {
        fprintf(stderr, "panic: $HOME is not defined\n\ngoroutine 1 [running]:\n");
        return 2;
    }
    if (count == 2 && (!strcmp(command, "--version") || !strcmp(command, "-v"))) {
        printf("ollama version is %s\n", ollama_version);
        return 0;
    }
    if (!strcmp(command, "runner") && count > 2 && !strcmp(words[2], "--ollama-engine") && !ollama_is_c())
        return ollama_runner(count - 3, words + 3);
    if (!strcmp(command, "gpu-discover") && ollama_is_c())
        return ollama_gpu_discover(count - 2, words + 2);
    if (!strcmp(command, "serve") && count == 2)
        return ollama_serve();
    fprintf(stderr, "Error: unknown command \"%s\" for \"ollama\"\n", command);
    return 1;
}
