/* `ollama runner --ollama-engine --port N`: v0.16.3:runner/ollamarunner/runner.go. sim.conf: actions at.ollama.runner
 * (before anything), at.ollama.info (before an answer); ollama.info.status, .body, .devices, .compute, .pci;
 * ollama.listen.address: where it listens in place of 127.0.0.1. */
#define _GNU_SOURCE
#include "golog.h"
#include "ollama.h"
#include "sim.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* x/imagegen/mlx/mlx_dynamic.c: before main, found only where ld.so looks. */
static void initialise_mlx(void)
{
    if (!dlopen("./build/lib/ollama/libmlxc.so", RTLD_LAZY | RTLD_GLOBAL))
        dlopen("libmlxc.so", RTLD_LAZY | RTLD_GLOBAL);
}

static void load_once(void)
{
    static int done;
    const char *paths = getenv("OLLAMA_LIBRARY_PATH");
    char *copy = strdup(paths ? paths : ollama_lib()), *rest = copy, *path;

    while (!done && (path = strsep(&rest, ":"))) {
        if (!strstr(path, "lib/ollama")) {
            go_log(GO_DEBUG, "ggml.go:89", "skipping path which is not part of ollama", "path", path, NULL);
            continue;
        }
        go_log(GO_DEBUG, "ggml.go:94", "ggml backend load all from path", "path", path, NULL);
        ollama_load_all(path);
    }
    done = 1;
    free(copy);
}

/* The dummy model; what goes wrong is the body of a 500. */
static int write_model(char *problem, size_t room)
{
    const char *folder = getenv("TMPDIR");
    char path[OLLAMA_PATH];
    int fd;

    snprintf(path, sizeof path, "%s/%u.bin", folder && *folder ? folder : "/tmp", (unsigned)getpid() * 7919u);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        snprintf(problem, room, "failed to initialize backend: open %s: %s\n", path,
                 errno == ENOENT ? "no such file or directory" : strerror(errno));
        return 0;
    }
    if (write(fd, "GGUF", 4) != 4)
        snprintf(problem, room, "failed to initialize backend: write %s: %s\n", path, strerror(errno));
    close(fd);
    unlink(path);
    return !*problem;
}

static size_t write_json(const struct found *device, char *to, size_t room)
{
    size_t used = (size_t)snprintf(
        to, room,
        "{\"id\":\"%s\",\"backend\":\"%s\",\"name\":\"%s\",\"description\":\"%s\",\"pci_id\":\"%s\",\"total_memory\":%llu,"
        "\"free_memory\":%llu,\"ComputeMajor\":%d,\"ComputeMinor\":%d",
        device->id, device->library, device->name, device->description, device->pci, device->total, device->free,
        device->cc_major, device->cc_minor);
    const char *paths = getenv("OLLAMA_LIBRARY_PATH");

    if (device->driver_major)
        used += (size_t)snprintf(to + used, room - used, ",\"driver_major\":%d", device->driver_major);
    if (device->driver_minor)
        used += (size_t)snprintf(to + used, room - used, ",\"driver_minor\":%d", device->driver_minor);
    used += (size_t)snprintf(to + used, room - used, ",\"LibraryPath\":[\"");
    for (; paths && *paths && used + 4 < room; paths++)
        used += (size_t)snprintf(to + used, room - used, *paths == ':' ? "\",\"" : "%c", *paths);
    return used + (size_t)snprintf(to + used, room - used, "\"]}");
}

static int answer(char *body, size_t room)
{
    static struct found devices[OLLAMA_DEVICES];
    const char *said = sim_get("ollama.info.body");
    int status = (int)sim_number(200, "ollama.info.status"), code;
    char took[64], problem[OLLAMA_PATH + 128] = "";
    double begun = go_now();
    size_t count, index, used;

    sim_act("ollama.info", &code);
    if (status != 200 || said) {
        snprintf(body, room, "%s\n", said ? said : status == 404 ? "404 page not found" : "failed to initialize backend");
        return status;
    }
    if (!write_model(problem, sizeof problem)) {
        sim_copy(body, room, problem);
        return 500;
    }
    load_once();
    sim_act("ollama.loaded", &code);
    go_duration(took, sizeof took, go_now() - begun);
    go_log(GO_DEBUG, "runner.go:1386", "dummy model load took", "duration", took, NULL);
    count = ollama_devices(devices, OLLAMA_DEVICES);
    used = (size_t)snprintf(body, room, "[");
    for (index = 0; index < count; index++) {
        if (index)
            body[used++] = ',';
        used += write_json(&devices[index], body + used, room - used);
    }
    snprintf(body + used, room - used, "]\n");
    return 200;
}

static void serve_one(int connection)
{
    static char body[1 << 18];
    char request[4096] = "", head[256];
    ssize_t got = recv(connection, request, sizeof request - 1, 0);
    int status = 404, info = got > 0 && !strncmp(request, "GET /info ", 10);

    if (info)
        status = answer(body, sizeof body);
    else
        strcpy(body, "404 page not found\n");
    snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
             status, status == 200 ? "OK" : status == 404 ? "Not Found" : "Internal Server Error",
             status == 200 ? "application/json" : "text/plain; charset=utf-8", strlen(body));
    if (send(connection, head, strlen(head), MSG_NOSIGNAL) > 0)
        send(connection, body, strlen(body), MSG_NOSIGNAL);
    close(connection);
}

int ollama_runner(int count, char **words)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int port = 8080, index, code, listener, one = 1;
    char text[64];

    for (index = 0; index + 1 < count; index++)
        if (!strcmp(words[index], "--port"))
            port = atoi(words[index + 1]);
    ollama_go_signals(); /* Go's own handlers come before package initialisation */
    sim_act("ollama.runner", &code);
    initialise_mlx();
    go_log(GO_INFO, "runner.go:1411", "starting ollama engine", NULL);
    address.sin_port = htons((unsigned short)port);
    if (sim_get("ollama.listen.address"))
        inet_pton(AF_INET, sim_get("ollama.listen.address"), &address.sin_addr);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (sim_act("ollama.listen", &code) || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        listen(listener, 16)) {
        printf("Listen error: listen tcp 127.0.0.1:%d: bind: address already in use\n", port);
        fprintf(stderr, "Error: listen tcp 127.0.0.1:%d: bind: address already in use\n", port);
        return 1;
    }
    snprintf(text, sizeof text, "Server listening on 127.0.0.1:%d", port);
    go_log(GO_INFO, "runner.go:1446", text, NULL);
    for (;;) {
        int connection = accept(listener, NULL, NULL);

        if (connection >= 0)
            serve_one(connection);
    }
}
