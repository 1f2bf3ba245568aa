/* Lines as Go's slog.TextHandler writes them, at the level that OLLAMA_DEBUG asks for (v0.16.3:logutil/logutil.go and
 * envconfig/config.go:178-189). */
#ifndef GOLOG_H
#define GOLOG_H

#include <stddef.h>

enum { GO_TRACE = -8, GO_DEBUG = -4, GO_INFO = 0, GO_WARN = 4 };

int go_level(void);
/* Keys and values follow MESSAGE, two by two, up to a NULL. */
void go_log(int level, const char *source, const char *message, ...) __attribute__((sentinel));
/* TEXT as a quoted value inside TO. */
void go_value(char *to, size_t room, const char *text);
/* v0.16.3:format/bytes.go:52 */
void go_bytes(char *to, size_t room, unsigned long long bytes);
/* time.Duration in its own words: 53.448457ms */
void go_duration(char *to, size_t room, double seconds);
double go_now(void);

#endif
