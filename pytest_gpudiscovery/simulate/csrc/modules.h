#ifndef MODULES_H
#define MODULES_H

/* Load every registered container with the driver that DRIVER is a handle of, if the environment asks for it. */
void load_modules_now(void *driver);

#endif
