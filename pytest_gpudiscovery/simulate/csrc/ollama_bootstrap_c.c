/* One discovery of 0.32.15 over one directory, from the server's side: v0.32.15:discover/llama_server.go:43-162 and
 * discover/runner.go:483-585. What is parsed is what the simulated programs print. */
#define _GNU_SOURCE
#include "golog.h"
#include "ollama.h"
#include "sim.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct program {
    char text[1 << 16];
    size_t used;
    int status, late;
};

/* Run ARGV until it ends, prints UNTIL, or END comes; what it prints on the descriptors in WHAT (1, 2, 3 for both). */
static void run(char *const *argv, const char *directory, const char *const *extra, int what, const char *until, double end,
                struct program *to)
{
    int ends[2], pid, done = 0, trace = go_level() <= GO_TRACE;
    ssize_t got;

    memset(to, 0, sizeof *to);
    if (pipe2(ends, O_CLOEXEC))
        return;
    pid = ollama_spawn(argv, directory, extra, what & 1 ? ends[1] : -1, what & 2 ? ends[1] : -1);
    close(ends[1]);
    while (!done) {
        struct pollfd wait = {ends[0], POLLIN, 0};
        double left = end - go_now();

        if (left <= 0) {
            to->late = 1;
            break;
        }
        if (poll(&wait, 1, (int)(left * 1000) + 1) <= 0)
            continue;
        got = read(ends[0], to->text + to->used, sizeof to->text - to->used - 1);
        if (got > 0)
            to->used += (size_t)got;
        done = got <= 0 || (until && strstr(to->text, until) && to->text[to->used - 1] == '\n');
    }
    close(ends[0]);
    if (until || to->late)
        kill(pid, SIGKILL);
    waitpid(pid, &to->status, 0);
    if (trace)
        fprintf(stderr, "%s", to->text);
}

static const char *ending(int status)
{
    static char text[32];

    if (WIFSIGNALED(status))
        return "signal";
    snprintf(text, sizeof text, "exit status %d", WEXITSTATUS(status));
    return text;
}

static int value(const char *text, const char *key, int index)
{
    while (index-- >= 0 && text)
        if ((text = strstr(text, key)))
            text += strlen(key);
    return text ? atoi(text) : 0;
}

static size_t parse(const char *listing, const char *native, const char *directory, struct found *to, size_t room)
{
    char name[64], description[256];
    const char *at = listing, *line;
    unsigned long long total, available;
    size_t count = 0;

    while (count < room && (line = strstr(at, "\n  ")) && (at = line + 3)) {
        struct found *device = &to[count];
        const char *pci = native;
        size_t index;

        if (sscanf(at, "%63[^:\n]: %255[^(\n](%llu MiB, %llu MiB free)", name, description, &total, &available) != 4 || !total)
            continue;
        *device = (struct found){.total = total << 20, .free = available << 20};
        description[strlen(description) - 1] = '\0';
        snprintf(device->id, sizeof device->id, "%zu", count);
        sim_copy(device->library, sizeof device->library, "CUDA");
        sim_copy(device->name, sizeof device->name, name);
        sim_copy(device->description, sizeof device->description, description);
        sim_copy(device->directory, sizeof device->directory, *directory ? directory : ollama_lib());
        for (index = 0; pci && index <= count; index++)
            if ((pci = strstr(pci, "\"device_id\":\"")))
                pci += 13;
        if (pci)
            snprintf(device->pci, sizeof device->pci, "%.12s", pci);
        device->cc_major = value(native, "\"compute_major\":", (int)count);
        device->cc_minor = value(native, "\"compute_minor\":", (int)count);
        device->driver_major = value(native, "\"cuda_driver_major\":", (int)count);
        device->driver_minor = value(native, "\"cuda_driver_minor\":", (int)count);
        device->nvidia_driver = value(native, "\"nvidia_driver_major\":", (int)count);
        count++;
    }
    return count;
}

/* v0.32.15:discover/cuda_compat.go: the runtime of a simulated cuda_v12 is 12.8. */
static size_t above_floor(struct found *devices, size_t count, const char *directory)
{
    char driver[16];
    size_t index, kept = 0;

    if (!strrchr(directory, '/') || strcmp(strrchr(directory, '/'), "/cuda_v12"))
        return count;
    if (count && !devices[0].nvidia_driver)
        go_log(GO_WARN, "cuda_compat.go:39", "could not verify NVIDIA driver compatibility for CUDA", NULL);
    for (index = 0; index < count; index++) {
        if (devices[index].nvidia_driver == 0 || devices[index].nvidia_driver >= 550) {
            devices[kept++] = devices[index];
            continue;
        }
        snprintf(driver, sizeof driver, "%d", devices[index].nvidia_driver);
        go_log(GO_WARN, "cuda_compat.go:65", "NVIDIA driver too old", "device", devices[index].description, "driver", driver,
               "required_driver", "550 or newer", NULL);
    }
    return kept;
}

static size_t discover(const char *directory, const char *const *extra, double end, struct found *to, size_t room,
                       const char *paths, const char **error)
{
    static __thread struct program start, list, native;
    char server[OLLAMA_PATH + 32], port[16];
    char *first[] = {server, "--port", port, "--host", "127.0.0.1", "--no-webui", "--offline", "--verbose", NULL};
    char *second[] = {server, "--list-devices", "--offline", "--verbose", NULL};
    char *third[] = {(char *)ollama_exe(), "gpu-discover", "--lib-dir", (char *)ollama_lib(),
                     *directory ? "--lib-dir" : NULL, (char *)directory, NULL};
    static __thread char words[128];
    double probe = (double)sim_number(15000, "ollama.probe_budget") / 1000, until = go_now() + probe;

    snprintf(server, sizeof server, "%s/llama-server", ollama_lib());
    if (access(server, F_OK)) {
        snprintf(words, sizeof words, "llama-server binary not found");
        go_log(GO_DEBUG, "llama_server.go:46", "llama-server not available for device discovery", "error", words, NULL);
        *error = words;
        return 0;
    }
    snprintf(port, sizeof port, "%d", 49152 + rand() % 16383);
    go_log(GO_TRACE, "llama_server.go:71", "running llama-server for discovery", "cmd", server, "libDirs", paths, NULL);
    run(first, directory, extra, 2, "system_info:", end, &start);
    if (start.late) {
        *error = "context deadline exceeded";
        go_log(GO_WARN, "llama_server.go:130", "llama-server discovery: timed out waiting for server startup", "error",
               *error, "libDirs", paths, "lines_captured", *start.text ? "1" : "0", NULL);
        return 0;
    }
    run(second, directory, extra, 3, NULL, end, &list);
    if (list.late || list.status) {
        snprintf(words, sizeof words, "llama-server --list-devices failed: %s",
                 list.late ? "context deadline exceeded" : ending(list.status));
        go_log(GO_DEBUG, "llama_server.go:150", "llama-server --list-devices failed", "error", words, NULL);
        *error = words;
        return 0;
    }
    run(third, directory, extra, 1, NULL, until < end ? until : end, &native);
    if (native.late || native.status)
        go_log(GO_DEBUG, "native_probe.go:262", "native GPU discovery failed", "error",
               native.late ? "context deadline exceeded" : ending(native.status), "libDirs", paths, NULL);
    return above_floor(to, parse(list.text, native.text, directory, to, room), directory);
}

size_t ollama_bootstrap_c(const char *directory, const char *const *extra, double end, struct found *to, size_t room)
{
    char paths[2 * OLLAMA_PATH + 4], extras[256] = "map[]", took[64];
    const char *error = NULL;
    double begun = go_now();
    size_t count;

    snprintf(paths, sizeof paths, "[%s%s%s]", ollama_lib(), *directory ? " " : "", directory);
    if (extra)
        snprintf(extras, sizeof extras, "map[CUDA_VISIBLE_DEVICES:%s GGML_CUDA_INIT:1]", strchr(extra[0], '=') + 1);
    count = discover(directory, extra, end, to, room, paths, &error);
    go_duration(took, sizeof took, go_now() - begun);
    go_log(GO_DEBUG, "llama_server.go:52", "llama-server device discovery took", "duration", took, "libDirs", paths, NULL);
    go_log(GO_DEBUG, "runner.go:494", "bootstrap discovery took", "duration", took, "OLLAMA_LIBRARY_PATH", paths, "extra_envs",
           extras, NULL);
    if (error)
        go_log(GO_INFO, "runner.go:522", "failure during llama-server GPU discovery", "OLLAMA_LIBRARY_PATH", paths,
               "extra_envs", extras, "error", error, "detail", "", NULL);
    return count;
}
