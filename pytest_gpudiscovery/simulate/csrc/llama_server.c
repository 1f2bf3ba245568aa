/* llama-server as Ollama 0.30 and later start it for discovery: until it has said system_info, and with --list-devices.
 * The words are those of llama.cpp b10488's tree. sim.conf: actions at.llama.start, at.llama.list (before anything),
 * at.llama.info (before system_info); llama.none=1 lists no device. */
#define _GNU_SOURCE
#include "ggml.h"
#include "sim.h"

#include <arpa/inet.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

size_t ggml_backend_reg_count(void);
struct reg *ggml_backend_reg_get(size_t index);
size_t ggml_backend_dev_count(void);
device_t ggml_backend_dev_get(size_t index);
const char *ggml_backend_reg_name(struct reg *reg);
const char *ggml_backend_dev_name(device_t device);
const char *ggml_backend_dev_description(device_t device);
void ggml_backend_dev_memory(device_t device, size_t *available, size_t *total);
int ggml_backend_dev_type(device_t device);
void *ggml_backend_reg_get_proc_address(struct reg *reg, const char *name);
void ggml_backend_load_all_from_path(const char *folder);
const char *llama_print_system_info(void);

static void load_backends(void)
{
    char path[PATH_MAX];

    if (!realpath("/proc/self/exe", path))
        abort();
    *strrchr(path, '/') = '\0';
    ggml_backend_load_all_from_path(path);
}

static void system_info(void)
{
    size_t index;

    fprintf(stderr, "0.00.024.395 I cmn  common_param: system_info: n_threads = 2 (n_threads_batch = 2) / 2 | %s",
            llama_print_system_info());
    for (index = 0; index < ggml_backend_reg_count(); index++) {
        struct reg *reg = ggml_backend_reg_get(index);
        struct feature *(*features)(struct reg *) =
            (struct feature * (*)(struct reg *)) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
        struct feature *feature = features ? features(reg) : NULL;

        if (feature)
            fprintf(stderr, "%s : ", ggml_backend_reg_name(reg));
        for (; feature && feature->name; feature++)
            fprintf(stderr, "%s = %s | ", feature->name, feature->value);
    }
    fprintf(stderr, "\n");
}

static int list_devices(void)
{
    size_t index, available, total, shown = 0;

    printf("Available devices:\n");
    for (index = 0; index < ggml_backend_dev_count() && !sim_get("llama.none"); index++) {
        device_t device = ggml_backend_dev_get(index);

        if (ggml_backend_dev_type(device) == DEVICE_CPU)
            continue;
        ggml_backend_dev_memory(device, &available, &total);
        printf("  %s: %s (%zu MiB, %zu MiB free)\n", ggml_backend_dev_name(device), ggml_backend_dev_description(device),
               total >> 20, available >> 20);
        shown++;
    }
    if (!shown)
        printf("  (none)\n");
    return 0;
}

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_port = htons((unsigned short)port);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 16)) {
        fprintf(stderr, "0.00.030.000 E srv  start_server: couldn't bind to 127.0.0.1:%d\n", port);
        return 1;
    }
    for (;;)
        pause();
}

int main(int count, char **words)
{
    const char *version = sim_get("llama.version");
    int index, port = 8080, list = 0, code;

    for (index = 1; index < count; index++) {
        list |= !strcmp(words[index], "--list-devices");
        if (!strcmp(words[index], "--port") && index + 1 < count)
            port = atoi(words[index + 1]);
    }
    if (count == 2 && !strcmp(words[1], "--version")) {
        fprintf(stderr, "version: %s\nbuilt with a C compiler for a simulated host\n", version ? version : "0");
        return 0;
    }
    sim_act(list ? "llama.list" : "llama.start", &code);
    load_backends();
    if (list)
        return list_devices();
    fprintf(stderr, "0.00.024.324 I cmn  common_param: common_params_print_info: build %s with GNU 12.2.0 for Linux x86_64\n",
            version ? version : "0");
    sim_act("llama.info", &code);
    system_info();
    return listen_on(port);
}
