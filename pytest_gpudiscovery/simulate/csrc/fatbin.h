/* Room for device code: simulate/fatbin.py finds it in the built library by its label and writes containers into it, so
 * that one compilation serves for every list of architectures. */
#ifndef FATBIN_H
#define FATBIN_H

#include <stddef.h>
#include <stdint.h>

struct room {
    char label[16];
    uint64_t size; /* of `code` */
    unsigned char code[];
};

/* Headers of nvcc's containers (checked against nvcc 13.0 and cuobjdump 13.5). */
struct container {
    uint32_t magic; /* 0xBA55ED50 */
    uint16_t version, head;
    uint64_t size; /* of the entries behind the header */
};
struct entry {
    uint16_t kind, version;
    uint32_t head;
    uint64_t size;
    uint32_t compressed, unknown;
    uint16_t minor, major; /* of the PTX ISA */
    uint32_t sm, unknown_2, unknown_3;
    uint32_t flags, unknown_4;
    uint64_t unknown_5, unknown_6;
};
enum { PTX = 1, SASS = 2, ARCHITECTURE = 0x100000, FAMILY = 0x200000 };
static const uint32_t CONTAINER_MAGIC = 0xBA55ED50;

/* What __cudaRegisterFatBinary is given. */
struct wrapper {
    int magic, version; /* 0x466243b1, 1 */
    const void *data;
    void *unused;
};

#define SIM_ROOM(name, bytes)                                                          \
    __attribute__((section(".nv_fatbin"), aligned(8), used)) static const struct {     \
        char label[16];                                                                \
        uint64_t size;                                                                 \
        unsigned char code[bytes];                                                     \
    } name = {"SIM.NV_FATBIN", bytes, {0}}

#endif
