/* How the server starts a child: v0.16.3:llm/server.go:364-430, v0.32.15:llm/llama_server.go:445-522. */
#define _GNU_SOURCE
#include "ollama.h"
#include "sim.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* The first file of DIRECTORY, by name, that is a GPU backend: v0.32.15:llm/llama_server.go:524-560. */
static int backend_of(const char *directory, char *to, size_t room)
{
    DIR *open = opendir(directory);
    struct dirent *entry;
    char best[256] = "";

    while (open && (entry = readdir(open)))
        if (!strncmp(entry->d_name, "libggml-", 8) && strstr(entry->d_name, ".so") &&
            strncmp(entry->d_name, "libggml-base", 12) && strncmp(entry->d_name, "libggml-cpu", 11) &&
            (!*best || strcmp(entry->d_name, best) < 0))
            sim_copy(best, sizeof best, entry->d_name);
    if (open)
        closedir(open);
    if (*best)
        snprintf(to, room, "%s/%s", directory, best);
    return *best != '\0';
}

static void compose(const char *directory, const char *const *extra)
{
    static char own[2 * OLLAMA_PATH + 2], path[8 * OLLAMA_PATH], backend[2 * OLLAMA_PATH];
    const char *before = getenv("LD_LIBRARY_PATH");

    snprintf(own, sizeof own, "%s%s%s", ollama_lib(), *directory ? ":" : "", directory);
    snprintf(path, sizeof path, "%s%s%s", own, before ? ":" : "", before ? before : "");
    setenv("LD_LIBRARY_PATH", path, 1);
    if (ollama_is_c()) {
        if (*directory && backend_of(directory, backend, sizeof backend))
            setenv("GGML_BACKEND_PATH", backend, 1);
    } else {
        setenv("OLLAMA_LIBRARY_PATH", own, 1);
    }
    for (; extra && *extra; extra++)
        putenv((char *)*extra);
}

int ollama_spawn(char *const *argv, const char *directory, const char *const *extra, int out, int err)
{
    int pid = fork();

    if (pid)
        return pid > 0 ? pid : 0;
    if (out < 0)
        out = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (err < 0)
        err = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(out, 1);
    dup2(err, 2);
    signal(SIGTERM, SIG_DFL);
    compose(directory, extra);
    execve(argv[0], argv, environ);
    _exit(127);
}
