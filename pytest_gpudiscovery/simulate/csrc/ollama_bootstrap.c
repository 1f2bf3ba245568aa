/* One discovery child of 0.16.3, from the server's side: v0.16.3:llm/server.go:321-439, ml/device.go:622-670 and
 * discover/runner.go:430-470. */
#define _GNU_SOURCE
#include "golog.h"
#include "ollama.h"
#include "sim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;

    if (!bind(fd, (struct sockaddr *)&address, sizeof address) && !getsockname(fd, (struct sockaddr *)&address, &size))
        port = ntohs(address.sin_port);
    close(fd);
    return port ? port : 49152 + rand() % 16383;
}

/* 1: a whole answer in TO; 0: none, ask again. */
static int ask(int port, double end, char *to, size_t room)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    double left = end - go_now();
    struct timeval limit = {(time_t)left, (suseconds_t)((left - (double)(time_t)left) * 1e6)};
    static const char request[] = "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t used = 0;
    ssize_t got = 0;

    address.sin_port = htons((unsigned short)port);
    if (left <= 0)
        limit = (struct timeval){0, 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (!connect(fd, (struct sockaddr *)&address, sizeof address) &&
        send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0)
        while (used + 1 < room && (got = recv(fd, to + used, room - used - 1, 0)) > 0)
            used += (size_t)got;
    close(fd);
    to[used] = '\0';
    return used > 0 && got == 0;
}

static void text_of(const char *object, const char *end, const char *key, char *to, size_t room)
{
    const char *at = strstr(object, key);
    size_t used = 0;

    *to = '\0';
    if (!at || at > end)
        return;
    for (at += strlen(key); *at && *at != '"' && used + 1 < room; at++)
        to[used++] = *at;
    to[used] = '\0';
}

static unsigned long long number_of(const char *object, const char *end, const char *key)
{
    const char *at = strstr(object, key);

    return at && at < end ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static size_t parse(const char *text, const char *directory, struct found *to, size_t room)
{
    size_t count = 0;

    while (count < room && (text = strstr(text, "{\"id\":\""))) {
        const char *end = strchr(text, '}');
        struct found *device = &to[count++];

        if (!end)
            return count - 1;
        memset(device, 0, sizeof *device);
        text_of(text, end, "\"id\":\"", device->id, sizeof device->id);
        text_of(text, end, "\"backend\":\"", device->library, sizeof device->library);
        text_of(text, end, "\"name\":\"", device->name, sizeof device->name);
        text_of(text, end, "\"description\":\"", device->description, sizeof device->description);
        text_of(text, end, "\"pci_id\":\"", device->pci, sizeof device->pci);
        device->total = number_of(text, end, "\"total_memory\":");
        device->free = number_of(text, end, "\"free_memory\":");
        device->cc_major = (int)number_of(text, end, "\"ComputeMajor\":");
        device->cc_minor = (int)number_of(text, end, "\"ComputeMinor\":");
        device->driver_major = (int)number_of(text, end, "\"driver_major\":");
        device->driver_minor = (int)number_of(text, end, "\"driver_minor\":");
        sim_copy(device->directory, sizeof device->directory, *directory ? directory : ollama_lib());
        text = end;
    }
    return count;
}

static void words_of(const char *directory, const char *const *extra, char *paths, char *extras, size_t room)
{
    const char *visible = "";
    size_t used;

    snprintf(paths, room, "[%s%s%s]", ollama_lib(), *directory ? " " : "", directory);
    used = (size_t)snprintf(extras, room, "map[");
    for (; extra && *extra; extra++, visible = " ") {
        const char *equals = strchr(*extra, '=');

        used += (size_t)snprintf(extras + used, room - used, "%s%.*s:%s", visible, (int)(equals - *extra), *extra,
                                 equals + 1);
    }
    snprintf(extras + used, room - used, "]");
}

size_t ollama_bootstrap_b(const char *directory, const char *const *extra, double end, struct found *to, size_t room)
{
    char paths[2 * OLLAMA_PATH], extras[2 * OLLAMA_PATH], number[16], command[OLLAMA_PATH + 64], took[64];
    char *argv[] = {(char *)ollama_exe(), "runner", "--ollama-engine", "--port", number, NULL}, *answer = malloc(1 << 18);
    const char *error = NULL, *body = "";
    int pid, status = 0, trace = go_level() == GO_TRACE, http = 0;
    double begun = go_now();
    size_t count = 0;

    words_of(directory, extra, paths, extras, sizeof paths);
    go_log(GO_TRACE, "runner.go:440", "starting runner for device discovery", "libDirs", paths, "extraEnvs", extras, NULL);
    snprintf(number, sizeof number, "%d", free_port());
    snprintf(command, sizeof command, "%s runner --ollama-engine --port %s", ollama_exe(), number);
    go_log(GO_INFO, "server.go:431", "starting runner", "cmd", command, NULL);
    pid = ollama_spawn(argv, directory, extra, trace ? 2 : -1, trace ? 2 : -1);
    while (answer && !error && !http) {
        if (go_now() >= end) {
            error = "failed to finish discovery before timeout";
        } else if (ask(atoi(number), end, answer, 1 << 18)) {
            http = atoi(answer + 9);
            body = strstr(answer, "\r\n\r\n") ? strstr(answer, "\r\n\r\n") + 4 : "";
        } else if (waitpid(pid, &status, WNOHANG) == pid) {
            error = "runner crashed";
            pid = 0;
        } else {
            nanosleep(&(struct timespec){0, 10000000}, NULL);
        }
    }
    if (http == 200)
        count = parse(body, directory, to, room);
    else if (http == 404)
        error = "llamarunner free vram reporting not supported";
    else if (http)
        snprintf(command, sizeof command, "runner error: %s", body), error = command;
    if (error && !pid && WIFEXITED(status)) {
        snprintf(number, sizeof number, "%d", WEXITSTATUS(status));
        go_log(GO_TRACE, "runner.go:462", "runner exited", "OLLAMA_LIBRARY_PATH", paths, "extra_envs", extras, "code",
               number, NULL);
    } else if (error) {
        go_log(GO_INFO, "runner.go:464", "failure during GPU discovery", "OLLAMA_LIBRARY_PATH", paths, "extra_envs",
               extras, "error", error, NULL);
    }
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    free(answer);
    go_duration(took, sizeof took, go_now() - begun);
    go_log(GO_DEBUG, "runner.go:437", "bootstrap discovery took", "duration", took, "OLLAMA_LIBRARY_PATH", paths,
           "extra_envs", extras, NULL);
    return count;
}
