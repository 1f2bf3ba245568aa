/* dlopen()s libraries and says what came of it, one fact per line; the process whose end the predictions are compared with.
   usage: probe [-g LIBRARY | -p LIBRARY]... LIBRARY      -g: RTLD_GLOBAL before, -p: RTLD_LOCAL before */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int print_map(struct dl_phdr_info *info, size_t size, void *label) {
  (void)size;
  printf("%s %s\n", (const char *)label, info->dlpi_name);
  return 0;
}

int main(int count, char **words) {
  int at = 1;
  for (; at < count - 1; at += 2) {
    int scope = strcmp(words[at], "-g") ? RTLD_LOCAL : RTLD_GLOBAL;
    if (!dlopen(words[at + 1], RTLD_NOW | scope)) printf("before %s\n", dlerror());
  }
  dl_iterate_phdr(print_map, "old");
  fflush(stdout);
  void *library = dlopen(words[count - 1], RTLD_NOW | RTLD_LOCAL);
  if (library) printf("ok\n");
  else printf("error %s\n", dlerror());
  dl_iterate_phdr(print_map, "map");
  fflush(stdout);
  _exit(library ? 0 : 1);
}
