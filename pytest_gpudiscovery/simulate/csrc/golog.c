#define _GNU_SOURCE
#include "golog.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>
#include <time.h>

static int is_true(const char *text)
{
    static const char *const words[] = {"1", "t", "T", "true", "TRUE", "True"};
    size_t index;

    for (index = 0; index < sizeof words / sizeof *words; index++)
        if (!strcmp(text, words[index]))
            return 1;
    return 0;
}

int go_level(void)
{
    const char *text = getenv("OLLAMA_DEBUG");

    if (!text || !*text)
        return GO_INFO;
    return is_true(text) ? GO_DEBUG : -4 * atoi(text);
}

double go_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void go_bytes(char *to, size_t room, unsigned long long bytes)
{
    static const char *const units[] = {"GiB", "MiB", "KiB"};
    unsigned long long unit = 1ull << 30;
    int index;

    for (index = 0; index < 3; index++, unit >>= 10)
        if (bytes >= unit) {
            snprintf(to, room, "%.1f %s", (double)bytes / (double)unit, units[index]);
            return;
        }
    snprintf(to, room, "%llu B", bytes);
}

void go_duration(char *to, size_t room, double seconds)
{
    if (seconds >= 1)
        snprintf(to, room, "%.9gs", seconds);
    else if (seconds >= 1e-3)
        snprintf(to, room, "%.9gms", seconds * 1e3);
    else
        snprintf(to, room, "%.6g\u00b5s", seconds * 1e6);
}

void go_value(char *to, size_t room, const char *text)
{
    int plain = *text != '\0';
    const char *at;
    size_t used = 0;

    for (at = text; *at; at++)
        plain &= *at > ' ' && *at != '=' && *at != '"' && *at != 127;
    if (plain) {
        snprintf(to, room, "%s", text);
        return;
    }
    to[used++] = '"';
    for (at = text; *at && used + 4 < room; at++) {
        if (*at == '\n') {
            to[used++] = '\\';
            to[used++] = 'n';
            continue;
        }
        if (*at == '"' || *at == '\\')
            to[used++] = '\\';
        to[used++] = *at;
    }
    to[used++] = '"';
    to[used] = '\0';
}

void go_log(int level, const char *source, const char *message, ...)
{
    static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    const char *name = level <= GO_TRACE ? "TRACE" : level < GO_INFO ? "DEBUG" : level < GO_WARN ? "INFO" : "WARN";
    static char line[65536], value[32768]; /* one thread at a time */
    const char *key;
    struct timeval now;
    struct tm parts;
    va_list list;
    size_t used;

    if (level < go_level())
        return;
    pthread_mutex_lock(&turn);
    gettimeofday(&now, NULL);
    gmtime_r(&now.tv_sec, &parts);
    used = strftime(line, sizeof line, "time=%Y-%m-%dT%H:%M:%S", &parts);
    go_value(value, sizeof value, message);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03dZ level=%s source=%s msg=%s",
                             (int)(now.tv_usec / 1000), name, source, value);
    va_start(list, message);
    while ((key = va_arg(list, const char *)) && used < sizeof line - 1) {
        go_value(value, sizeof value, va_arg(list, const char *));
        used += (size_t)snprintf(line + used, sizeof line - used, " %s=%s", key, value);
    }
    va_end(list);
    fprintf(stderr, "%s\n", line);
    fflush(stderr);
    pthread_mutex_unlock(&turn);
}
