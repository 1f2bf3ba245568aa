/* The simulated ollama: what its commands share. Each follows the source of one release: 0.16.3 for layout b (a runner
 * that loads ggml), 0.32.15 for layout c (llama-server beside a native probe). */
#ifndef OLLAMA_H
#define OLLAMA_H

#include <stddef.h>

enum { OLLAMA_DEVICES = 64, OLLAMA_DIRECTORIES = 16, OLLAMA_PATH = 4096 };

struct found { /* ml.DeviceInfo */
    char id[64], library[16], name[64], description[256], pci[32], directory[OLLAMA_PATH];
    unsigned long long total, free;
    int cc_major, cc_minor, driver_major, driver_minor, nvidia_driver;
};

/* The library directory that Ollama finds from its own path (v0.16.3:ml/path.go). */
const char *ollama_lib(void);
const char *ollama_exe(void);
extern const char ollama_version[];
int ollama_is_c(void); /* whether the release is 0.30 or later */

int ollama_runner(int count, char **words);    /* ollama runner --ollama-engine --port N */
int ollama_serve(void);                        /* ollama serve */
int ollama_gpu_discover(int count, char **words); /* ollama gpu-discover --lib-dir DIR ... */

/* One child of discovery over DIRECTORY ("" for none) with EXTRA ("NAME=value", ... up to NULL), until END (go_now). */
size_t ollama_bootstrap_b(const char *directory, const char *const *extra, double end, struct found *to, size_t room);
size_t ollama_bootstrap_c(const char *directory, const char *const *extra, double end, struct found *to, size_t room);
size_t ollama_discover(struct found *to, size_t room); /* both passes */

/* Start ARGV with the child's environment for DIRECTORY; OUT and ERR are descriptors, -1 for /dev/null. 0 on failure. */
int ollama_spawn(char *const *argv, const char *directory, const char *const *extra, int out, int err);
void ollama_go_signals(void); /* a fault in C ends a Go program with status 2 and this text */

/* ggml as the runner links it: v0.16.3:ml/backend/ggml/ggml/src/ggml-backend-reg.cpp */
void ollama_load_all(const char *path);
size_t ollama_devices(struct found *to, size_t room);

#endif
