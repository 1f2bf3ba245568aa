/* Preloaded: makes loopback, name resolution or the temporary directory answer wrongly (actions of getaddrinfo, bind,
 * connect and write in sim.conf; a returned number other than getaddrinfo's is the errno). netfault.localhost is the
 * address that localhost gets. */
#define _GNU_SOURCE
#include "sim.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

SIM_EXPORT int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        (int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
    int code, local = node && !strcmp(node, "localhost");

    if (local && sim_act("getaddrinfo", &code))
        return code;
    return next(local && sim_get("netfault.localhost") ? sim_get("netfault.localhost") : node, service, hints, found);
}

static int is_loopback(const struct sockaddr *address)
{
    return address->sa_family == AF_INET &&
           ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
}

SIM_EXPORT int bind(int fd, const struct sockaddr *address, socklen_t size)
{
    int (*next)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    int code;

    if (is_loopback(address) && sim_act("bind", &code)) {
        errno = code;
        return -1;
    }
    return next(fd, address, size);
}

SIM_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    int (*next)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
    int code;

    if (is_loopback(address) && sim_act("connect", &code)) {
        errno = code;
        return -1;
    }
    return next(fd, address, size);
}

SIM_EXPORT ssize_t write(int fd, const void *data, size_t size)
{
    ssize_t (*next)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    const char *folder = getenv("TMPDIR");
    char link[64], path[PATH_MAX];
    ssize_t length;
    int code;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (folder && *folder && sim_get("at.write") && (length = readlink(link, path, sizeof path - 1)) > 0) {
        path[length] = '\0';
        if (!strncmp(path, folder, strlen(folder)) && sim_act("write", &code)) {
            errno = code;
            return -1;
        }
    }
    return next(fd, data, size);
}
