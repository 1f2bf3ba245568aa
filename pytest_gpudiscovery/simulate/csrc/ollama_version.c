/* The release that this simulated ollama is, and where a Go program says so in its file: -X of the linker's flags in Go's
 * build information (debug/buildinfo: a header of 32 bytes, then strings behind a varint of their length). */
#include "ollama.h"

#include <stdio.h>

#define GO "go1.24.1"
#define SENTINEL "0123456789abcdef" /* the linker puts 16 bytes before the text and behind it */
#define FLAG "-X=github.com/ollama/ollama/version.Version=" SIM_VERSION
#define TEXT SENTINEL "path\tgithub.com/ollama/ollama\nbuild\t-ldflags=\"" FLAG "\"\n" "0123456789abcde"

struct build_info {
    unsigned char head[32], go_length;
    char go[sizeof GO - 1];
    unsigned char length[2];
    char text[sizeof TEXT]; /* with its NUL as the last byte of the sentinel */
};

__attribute__((used, section(".go.buildinfo"))) static const struct build_info info = {
    .head = {0xff, ' ', 'G', 'o', ' ', 'b', 'u', 'i', 'l', 'd', 'i', 'n', 'f', ':', 8, 2},
    .go_length = sizeof GO - 1,
    .go = {'g', 'o', '1', '.', '2', '4', '.', '1'},
    .length = {(sizeof TEXT & 0x7f) | 0x80, sizeof TEXT >> 7},
    .text = TEXT,
};

const char ollama_version[] = SIM_VERSION;

int ollama_is_c(void)
{
    int major = 0, minor = 0;

    sscanf(ollama_version, "%d.%d", &major, &minor);
    return major > 0 || minor >= 30;
}
