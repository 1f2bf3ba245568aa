#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SIM_LIBRARY
#error "SIM_LIBRARY: the name whose constructor actions this library carries out"
#endif

struct line {
    const char *key, *value;
};

static struct line *lines;
static size_t line_count;
static char own_path[PATH_MAX];
static pthread_once_t once = PTHREAD_ONCE_INIT;

#include "hang.h"

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct line *)a)->key, ((const struct line *)b)->key);
}

static char *whole_file(const char *path)
{
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0 || !text) {
        fprintf(stderr, "simulated driver: cannot read %s: %s\n", path, strerror(errno));
        free(text);
        return NULL;
    }
    while ((got = read(fd, text + size, room - size - 1)) > 0) {
        size += (size_t)got;
        if (size + 1 == room && !(text = realloc(text, room *= 2)))
            abort();
    }
    close(fd);
    text[size] = '\0';
    return text;
}

static int find_own_path(void)
{
#ifdef SIM_PROGRAM
    return realpath("/proc/self/exe", own_path) != NULL; /* dladdr gives what the caller typed */
#else
    Dl_info self;

    return dladdr((void *)find_own_path, &self) && realpath(self.dli_fname, own_path);
#endif
}

static void load(void)
{
    char path[PATH_MAX + 16], *text, *slash, *next, *equals;

    if (!find_own_path())
        return;
    sim_copy(path, sizeof path, own_path);
    do { /* the nearest one above the file */
        if (!(slash = strrchr(path, '/')))
            break;
        strcpy(slash, "/sim.conf");
        if (!access(path, F_OK))
            break;
        *slash = '\0';
    } while (1);
    if (!(text = whole_file(slash ? path : "sim.conf")))
        return;
    for (next = text; *next; next++)
        line_count += *next == '\n';
    lines = calloc(line_count + 1, sizeof *lines);
    if (!lines)
        abort();
    line_count = 0;
    while ((next = strsep(&text, "\n"))) {
        if (*next == '#' || !(equals = strchr(next, '=')))
            continue;
        *equals = '\0';
        lines[line_count].key = next;
        lines[line_count++].value = equals + 1;
    }
    qsort(lines, line_count, sizeof *lines, by_key);
}

static const char *lookup(const char *key)
{
    struct line wanted = {key, NULL}, *found;

    pthread_once(&once, load);
    found = lines ? bsearch(&wanted, lines, line_count, sizeof *lines, by_key) : NULL;
    return found ? found->value : NULL;
}

const char *sim_get(const char *format, ...)
{
    char key[256];
    va_list list;

    va_start(list, format);
    vsnprintf(key, sizeof key, format, list);
    va_end(list);
    return lookup(key);
}

long long sim_number(long long fallback, const char *format, ...)
{
    char key[256];
    const char *value;
    va_list list;

    va_start(list, format);
    vsnprintf(key, sizeof key, format, list);
    va_end(list);
    value = lookup(key);
    return value && *value ? strtoll(value, NULL, 0) : fallback;
}

const char *sim_gpu(const char *layer, int gpu, const char *key)
{
    const char *value;

    if ((value = sim_get("%s.gpu.%d.%s", layer, gpu, key)) || (value = sim_get("gpu.%d.%s", gpu, key)) ||
        (value = sim_get("%s.gpu.%s", layer, key)))
        return value;
    return sim_get("gpu.%s", key);
}

long long sim_gpu_number(long long fallback, const char *layer, int gpu, const char *key)
{
    const char *value = sim_gpu(layer, gpu, key);

    return value && *value ? strtoll(value, NULL, 0) : fallback;
}

/* --- injected faults ----------------------------------------------------------------------------------------------- */

static void hold_descriptors(double seconds)
{
    if (fork() == 0) { /* a grandchild that keeps the pipes of the probe open */
        rest(seconds);
        _exit(0);
    }
}

static volatile int *volatile nowhere; /* volatile, so that no compiler makes something else of the fault */

int sim_act(const char *function, int *code)
{
    const char *found = sim_get("at.%s", function);
    char *actions, *rest_of, *one, *verb;
    int decided = 0;

    if (!found || !(rest_of = actions = strdup(found)))
        return 0;
    while (!decided && (one = strsep(&rest_of, ";"))) {
        while (*one == ' ')
            one++;
        verb = strsep(&one, " ");
        if (!one)
            one = verb + strlen(verb);
        if (!strcmp(verb, "return")) {
            *code = atoi(one);
            decided = 1;
        } else if (!strcmp(verb, "sleep")) {
            rest(atof(one));
        } else if (!strcmp(verb, "hang")) {
            hang(one);
        } else if (!strcmp(verb, "fork")) {
            hold_descriptors(atof(one));
        } else if (!strcmp(verb, "exit")) {
            exit(atoi(one));
        } else if (!strcmp(verb, "_exit")) {
            _exit(atoi(one));
        } else if (!strcmp(verb, "abort")) {
            abort();
        } else if (!strcmp(verb, "segv")) {
            *nowhere = 1;
        } else if (!strcmp(verb, "signal")) {
            kill(getpid(), atoi(one));
        }
    }
    free(actions);
    return decided;
}

__attribute__((constructor)) static void constructor(void)
{
    char action[PATH_MAX + 16], *folder;
    int code;

    sim_act("constructor." SIM_LIBRARY, &code);
    snprintf(action, sizeof action, "constructor.%s", sim_own_name());
    if (strcmp(sim_own_name(), SIM_LIBRARY))
        sim_act(action, &code);
    folder = strrchr(own_path, '/');
    while (folder > own_path && *--folder != '/')
        ;
    snprintf(action, sizeof action, "constructor.%s", *own_path ? folder + 1 : "");
    sim_act(action, &code); /* cuda_v12/libggml-cuda.so */
}

/* --- the process and the device nodes ------------------------------------------------------------------------------ */

static int may_make_nodes(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0, 0, 0}, {0, 0, 0}};

    if (geteuid() == 0)
        return !syscall(SYS_capget, &header, data) && (data[0].effective & (1u << CAP_MKNOD));
    /* nvidia-modprobe is setuid root, which no_new_privs turns off */
    return sim_number(0, "modprobe.setuid") && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0;
}

enum sim_node sim_node(const char *path)
{
    const char *value = sim_get("node.%s", path);
    unsigned mode, uid, gid;
    char error[16];
    gid_t groups[256];
    int count, index;

    if (!value || sscanf(value, "%o %u %u %15s", &mode, &uid, &gid, error) != 4)
        return may_make_nodes() ? SIM_NODE_OK : SIM_NODE_ABSENT;
    if (strcmp(error, "-"))
        return strcmp(error, "EACCES") ? SIM_NODE_UNUSABLE : SIM_NODE_DENIED;
    if (geteuid() == 0)
        return SIM_NODE_OK;
    count = getgroups(256, groups);
    if (uid == geteuid()) {
        mode >>= 6;
    } else {
        int member = gid == getegid();

        for (index = 0; index < count; index++)
            member |= groups[index] == gid;
        if (member)
            mode >>= 3;
    }
    if ((mode & 6) == 6)
        return SIM_NODE_OK;
    return mode & 4 ? SIM_NODE_UNUSABLE : SIM_NODE_DENIED; /* 0444 answers otherwise than 0600: facts/h100.md */
}

enum sim_node sim_gpu_node(int gpu)
{
    char path[64];

    snprintf(path, sizeof path, "/dev/nvidia%d", (int)sim_gpu_number(gpu, "kernel", gpu, "minor"));
    return sim_node(path);
}

int sim_gpu_count(const char *layer)
{
    return (int)sim_number(sim_number(0, "gpu.count"), "%s.gpu.count", layer);
}

int sim_module_loaded(void)
{
    return sim_get("driver.module") != NULL;
}

const char *sim_own_name(void)
{
    pthread_once(&once, load);
    return strrchr(own_path, '/') ? strrchr(own_path, '/') + 1 : own_path;
}

const char *sim_own_version(void)
{
    const char *version;

    pthread_once(&once, load);
    version = strstr(own_path, ".so.");
    return version && strchr(version + 4, '.') ? version + 4 : "";
}

int sim_version_matches_module(void)
{
    const char *module = sim_get("driver.module"), *own = sim_own_version(), *compat = sim_get("driver.compat");

    return !module || !*own || !strcmp(module, own) || (compat && !strcmp(compat, own));
}

int sim_proc_is_another_namespaces(void)
{
    char seen[32];
    ssize_t size = readlink("/proc/self", seen, sizeof seen - 1);

    if (size < 0)
        return 0;
    seen[size] = '\0';
    return atoi(seen) != (int)getpid();
}

int sim_take_descriptors(int count, int give_back)
{
    int taken[64], index;

    for (index = 0; index < count && index < 64; index++)
        if ((taken[index] = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0) {
            while (give_back && index-- > 0)
                close(taken[index]);
            return 0;
        }
    return 1;
}

void sim_uuid_bytes(const char *text, unsigned char bytes[16])
{
    size_t filled = 0;
    unsigned byte;

    memset(bytes, 0, 16);
    text = text && strchr(text, '-') ? strchr(text, '-') : "";
    while (*text && filled < 16) {
        if (*text == '-') {
            text++;
        } else if (sscanf(text, "%2x", &byte) == 1) {
            bytes[filled++] = (unsigned char)byte;
            text += 2;
        } else {
            break;
        }
    }
}

void sim_copy(char *to, size_t room, const char *from)
{
    if (room)
        snprintf(to, room, "%s", from ? from : "");
}
