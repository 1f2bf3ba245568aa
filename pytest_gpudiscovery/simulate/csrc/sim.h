/* What the simulated driver libraries share: their configuration, injected faults, and the device nodes.
 *
 * Each library and program reads sim.conf of its host: it is looked for from the directory of its own file upwards.
 * Lines `key=value`, written by simulate/conf.py. A key that starts with `at.` holds actions for one function, such as
 *     at.cuInit=sleep 30; return 802
 */
#ifndef SIM_H
#define SIM_H

#include <stddef.h>

#define SIM_EXPORT __attribute__((visibility("default")))

/* Value of the key that FORMAT makes, or NULL. */
const char *sim_get(const char *format, ...) __attribute__((format(printf, 1, 2)));
long long sim_number(long long fallback, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Property KEY of GPU as LAYER (cuda, nvml) tells it. The first of LAYER.gpu.N.KEY, gpu.N.KEY, LAYER.gpu.KEY and
 * gpu.KEY counts: views that disagree are one line, and what all GPUs share is written once. */
const char *sim_gpu(const char *layer, int gpu, const char *key);
long long sim_gpu_number(long long fallback, const char *layer, int gpu, const char *key);

/* Carry out the actions of FUNCTION; 1 when it must return *CODE at once. Before main or in dlopen every library carries
 * out those of constructor.NAME (libcuda), constructor.FILE (libggml-cpu-haswell.so) and constructor.FOLDER/FILE. */
int sim_act(const char *function, int *code);

#define SIM_GATE(function)                     \
    do {                                       \
        int sim_code;                          \
        if (sim_act(function, &sim_code))      \
            return sim_code;                   \
    } while (0)

/* What open(O_RDWR) of a device node would say to this process. A node that is not there, or has wrong numbers, is made
 * anew by the driver's user space where it may: SIM_NODE_OK for root with CAP_MKNOD. */
enum sim_node { SIM_NODE_OK, SIM_NODE_ABSENT, SIM_NODE_DENIED, SIM_NODE_UNUSABLE };
enum sim_node sim_node(const char *path);
enum sim_node sim_gpu_node(int gpu);

int sim_gpu_count(const char *layer);
int sim_module_loaded(void);
const char *sim_own_name(void);        /* the library's own file name, links followed */
const char *sim_own_version(void);     /* of the library's own file name, "" without one */
int sim_version_matches_module(void);

/* Whether /proc belongs to another pid namespace than this process: cuInit then answers 304. Measured: with a new user
 * and pid namespace and the old /proc it does, with a new user namespace alone it does not. */
int sim_proc_is_another_namespaces(void);

/* Take COUNT file descriptors, as the driver does; 0 when there are not that many. GIVE_BACK then closes those that it
 * got: measured with RLIMIT_NOFILE 16, NVML's failure leaves room for libcuda.so.1, cuInit's leaves none for libcudart. */
int sim_take_descriptors(int count, int give_back);

/* The 16 bytes of "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx". */
void sim_uuid_bytes(const char *text, unsigned char bytes[16]);
void sim_copy(char *to, size_t room, const char *from);

#endif
