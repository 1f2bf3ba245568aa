/* `ollama serve` until its discovery is over, then it waits for its end: v0.16.3:server/routes.go and
 * discover/runner.go:37-260, types.go; v0.32.15 likewise. sim.conf: actions at.ollama.serve; ollama.serve.cpu=1 drops
 * every device; ollama.budget: what stands for Ollama's 30 s. */
#define _GNU_SOURCE
#include "golog.h"
#include "ollama.h"
#include "sim.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *line(const char *b, const char *c)
{
    return ollama_is_c() ? c : b;
}

static size_t bootstrap(const char *directory, const char *const *extra, double end, struct found *to, size_t room)
{
    return (ollama_is_c() ? ollama_bootstrap_c : ollama_bootstrap_b)(directory, extra, end, to, room);
}

/* --- the directories ------------------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    return strcmp((const char *)a, (const char *)b);
}

static int holds_ggml(const char *path)
{
    DIR *open = opendir(path);
    struct dirent *entry;
    int found = 0;

    while (open && (entry = readdir(open)))
        found |= strstr(entry->d_name, "ggml-") != NULL;
    if (open)
        closedir(open);
    return found;
}

/* With JETSON_JETPACK every directory but its own is passed over without a line: v0.20.0:discover/runner.go:100. */
static int is_of_other_jetson(const char *name)
{
    const char *jetpack = getenv("JETSON_JETPACK");
    char own[64];

    snprintf(own, sizeof own, "cuda_jetpack%.1s", jetpack ? jetpack : "");
    return jetpack && *jetpack && strcmp(name, own);
}

static size_t directories(char names[][OLLAMA_PATH])
{
    DIR *open = opendir(ollama_lib());
    const char *wanted = getenv("OLLAMA_LLM_LIBRARY");
    struct dirent *entry;
    size_t count = 0;

    while (open && count < OLLAMA_DIRECTORIES && (entry = readdir(open))) {
        snprintf(names[count], OLLAMA_PATH, "%s/%s", ollama_lib(), entry->d_name);
        if (*entry->d_name == '.' || !holds_ggml(names[count]) || is_of_other_jetson(entry->d_name))
            continue;
        count++;
    }
    if (open)
        closedir(open);
    if (!count) {
        *names[0] = '\0';
        return 1;
    }
    qsort(names, count, OLLAMA_PATH, by_name); /* Ollama's own order is random */
    if (wanted && *wanted) {
        size_t kept = 0, index;

        for (index = 0; index < count; index++) {
            if (!strcmp(strrchr(names[index], '/') + 1, wanted))
                memmove(names[kept++], names[index], OLLAMA_PATH);
            else
                go_log(GO_DEBUG, line("runner.go:98", "runner.go:101"), "skipping available library at user's request", "requested", wanted,
                       "libDir", names[index], NULL);
        }
        return kept;
    }
    return count;
}

/* --- the two passes ------------------------------------------------------------------------------------------------- */

struct check {
    struct found *device;
    double end;
    size_t found;
};

static void *second(void *given)
{
    struct check *check = given;
    struct found again[OLLAMA_DEVICES > 8 ? 8 : OLLAMA_DEVICES];
    char visible[96];
    const char *extra[] = {visible, "GGML_CUDA_INIT=1", NULL};

    snprintf(visible, sizeof visible, "CUDA_VISIBLE_DEVICES=%s", check->device->id);
    check->found = bootstrap(check->device->directory, extra, check->end, again, sizeof again / sizeof *again);
    if (!check->found)
        go_log(GO_DEBUG, line("runner.go:153", "runner.go:160"), "filtering device which didn't fully initialize", "id",
               check->device->id, "libdir", check->device->directory, "pci_id", check->device->pci, "library",
               check->device->library, NULL);
    return NULL;
}

static size_t validate(struct found *devices, size_t count, double end)
{
    static struct check checks[OLLAMA_DEVICES];
    static pthread_t threads[OLLAMA_DEVICES];
    char compute[16];
    size_t index, kept = 0;

    for (index = 0; index < count; index++) {
        struct found *device = &devices[index];

        snprintf(compute, sizeof compute, "%d.%d", device->cc_major, device->cc_minor);
        go_log(GO_DEBUG, line("runner.go:146", "runner.go:153"), "verifying if device is supported", "library",
               device->directory, "description", device->description, "compute", compute, "id", device->id, "pci_id",
               device->pci, NULL);
        checks[index] = (struct check){device, end, 0};
        pthread_create(&threads[index], NULL, second, &checks[index]);
    }
    for (index = 0; index < count; index++)
        pthread_join(threads[index], NULL);
    for (index = 0; index < count; index++)
        if (checks[index].found)
            devices[kept++] = devices[index];
    return kept;
}

/* The newest directory wins: the directories of a simulated release see the same devices. */
static size_t overlap(struct found *devices, size_t count)
{
    const char *newest = "";
    size_t index, kept = 0;

    for (index = 0; index < count; index++)
        if (strcmp(devices[index].directory, newest) > 0)
            newest = devices[index].directory;
    newest = strdup(newest);
    for (index = 0; index < count; index++) {
        if (!strcmp(devices[index].directory, newest)) {
            devices[kept++] = devices[index];
            continue;
        }
        go_log(GO_DEBUG, line("runner.go:401", "runner.go:475"), "filtering device with overlapping libraries", "id",
               devices[index].id, "library", devices[index].directory, "kept_library", newest, NULL);
    }
    return kept;
}

/* CUDA_VISIBLE_DEVICES as Ollama configures itself by it (v0.16.3:envconfig/config.go:340-342): without white space
 * and then quotes around it. Its children get the variable as it is. */
static const char *overridden(char *to, size_t room)
{
    const char *value = getenv("CUDA_VISIBLE_DEVICES");
    size_t size;

    sim_copy(to, room, value ? value + strspn(value, " \t\n\v\f\r") : "");
    for (size = strlen(to); size && strchr(" \t\n\v\f\r", to[size - 1]); size--)
        to[size - 1] = '\0';
    to += strspn(to, "\"'");
    for (size = strlen(to); size && strchr("\"'", to[size - 1]); size--)
        to[size - 1] = '\0';
    return to;
}

size_t ollama_discover(struct found *to, size_t room)
{
    static char names[OLLAMA_DIRECTORIES][OLLAMA_PATH];
    double budget = (double)sim_number(30000, "ollama.budget") / 1000, begun = go_now();
    size_t count = 0, index, number;
    char text[64], given[4096];
    const char *chosen;

    go_log(GO_INFO, line("runner.go:67", "runner.go:60"), "discovering available GPUs...", NULL);
    if (*(chosen = overridden(given, sizeof given)))
        go_log(GO_WARN, line("runner.go:485", "runner.go:722"), "user overrode visible devices", "CUDA_VISIBLE_DEVICES",
               chosen, NULL);
    number = directories(names);
    for (index = 0; index < number; index++)
        count += bootstrap(names[index], NULL, go_now() + budget, to + count, room - count);
    snprintf(text, sizeof text, "%zu", count);
    go_log(GO_DEBUG, line("runner.go:124", "runner.go:131"), "evaluating which, if any, devices to filter out",
           "initial_count", text, NULL);
    count = overlap(to, validate(to, count, go_now() + budget));
    go_duration(text, sizeof text, go_now() - begun);
    go_log(GO_DEBUG, line("runner.go:40", "runner.go:42"), "GPU bootstrap discovery took", "duration", text, NULL);
    return sim_number(0, "ollama.serve.cpu") ? 0 : count;
}

/* --- the server ----------------------------------------------------------------------------------------------------- */

static void details(const struct found *device)
{
    char compute[16], driver[16], libraries[128], total[32], available[32];
    const char *name = strrchr(device->directory, '/');

    snprintf(compute, sizeof compute, "%d.%d", device->cc_major, device->cc_minor);
    snprintf(driver, sizeof driver, "%d.%d", device->driver_major, device->driver_minor);
    snprintf(libraries, sizeof libraries, "ollama%s%s", strcmp(device->directory, ollama_lib()) ? "," : "",
             strcmp(device->directory, ollama_lib()) ? name + 1 : "");
    go_bytes(total, sizeof total, device->total);
    go_bytes(available, sizeof available, device->free);
    go_log(GO_INFO, line("types.go:42", "types.go:32"), "inference compute", "id", device->id, "filter_id", "",
           "library", device->library, "compute", compute, "name", device->name, "description", device->description,
           "libdirs", libraries, "driver", driver, "pci_id", device->pci, "type", "discrete", "total", total,
           "available", available, NULL);
}

static int listener(char *address, size_t room)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *host = getenv("OLLAMA_HOST");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    where.sin_port = htons((unsigned short)(host && strrchr(host, ':') ? atoi(strrchr(host, ':') + 1) : 11434));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    snprintf(address, room, "127.0.0.1:%d", ntohs(where.sin_port));
    return bind(fd, (struct sockaddr *)&where, sizeof where) || listen(fd, 16) ? -1 : fd;
}

int ollama_serve(void)
{
    static struct found devices[OLLAMA_DEVICES];
    char address[64], text[OLLAMA_PATH], memory[32], *models = getenv("OLLAMA_MODELS");
    unsigned long long total = 0;
    size_t count, index;
    int code;

    signal(SIGPIPE, SIG_IGN);
    if (listener(address, sizeof address) < 0) {
        fprintf(stderr, "Error: listen tcp %s: bind: address already in use\n", address);
        return 1;
    }
    snprintf(text, sizeof text, "%s/.ollama", getenv("HOME"));
    if (mkdir(text, 0755))
        fprintf(stderr, "Couldn't find '%s/id_ed25519'. Generating new private key.\n", text);
    if (models)
        mkdir(models, 0755);
    go_log(GO_INFO, line("routes.go:1663", "routes.go:1951"), "server config", "env", "map[OLLAMA_DEBUG:... ]", NULL);
    snprintf(text, sizeof text, "Listening on %s (version %s)", address, ollama_version);
    go_log(GO_INFO, line("routes.go:1718", "routes.go:2008"), text, NULL);
    sim_act("ollama.serve", &code);
    count = ollama_discover(devices, OLLAMA_DEVICES);
    for (index = 0; index < count; index++) {
        details(&devices[index]);
        total += devices[index].total;
    }
    if (!count)
        go_log(GO_INFO, line("types.go:60", "types.go:50"), "inference compute", "id", "cpu", "library", "cpu", "compute",
               "", "name", "cpu", "description", "cpu", "libdirs", "ollama", "driver", "", "pci_id", "", "type", "",
               "total", "7.8 GiB", "available", "7.0 GiB", NULL);
    go_bytes(memory, sizeof memory, total);
    go_log(GO_INFO, line("routes.go:1768", "routes.go:2058"), "vram-based default context", "total_vram", memory,
           "default_num_ctx", total >= 47ull << 30 ? "262144" : total >= 23ull << 30 ? "32768" : "4096", NULL);
    for (;;)
        pause();
}
