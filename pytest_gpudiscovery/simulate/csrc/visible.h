/* How the driver reads an entry of CUDA_VISIBLE_DEVICES, measured on driver 580.159.04; the rules are told in
 * stages/visible.py, and tests/simulate/test_visible.py holds both to what was recorded. */
#ifndef VISIBLE_H
#define VISIBLE_H

#include <stdlib.h>
#include <string.h>

enum { VISIBLE_LONGEST = 2624, VISIBLE_DIGITS = 32 };

struct visible_entry {
    int by_uuid, mig;
    unsigned number;
    char digits[VISIBLE_DIGITS + 1];
};

static int visible_is_uuid(const char *text)
{
    return !strncmp(text, "GPU-", 4) || !strncmp(text, "MIG-", 4);
}

/* The hex digits after the prefix of TEXT, in lower case; 0 when another character comes before there are 32. */
static int visible_digits(const char *text, char digits[VISIBLE_DIGITS + 1])
{
    static const char hex[] = "0123456789abcdef0123456789ABCDEF";
    const char *found;
    int count = 0;

    for (text += 4; *text && count < VISIBLE_DIGITS; text++) {
        if (*text == '-')
            continue;
        if (!(found = strchr(hex, *text)))
            return 0;
        digits[count++] = hex[(found - hex) % 16];
    }
    digits[count] = '\0';
    return count;
}

/* Read TEXT, an entry of a list BY_UUID or by numbers; 0 when the list ends here. */
static int visible_read(const char *text, int by_uuid, struct visible_entry *entry)
{
    char *end;

    memset(entry, 0, sizeof *entry);
    entry->by_uuid = by_uuid;
    if (by_uuid) {
        entry->mig = *text == 'M';
        return visible_is_uuid(text) && visible_digits(text, entry->digits);
    }
    entry->number = (unsigned)strtoul(text, &end, 10);
    return end != text;
}

/* Whether ENTRY is the beginning of UUID. */
static int visible_begins(const struct visible_entry *entry, const char *uuid)
{
    char digits[VISIBLE_DIGITS + 1];

    return uuid && visible_digits(uuid, digits) && !strncmp(digits, entry->digits, strlen(entry->digits));
}

/* Whether CUDA_DEVICE_ORDER is none of its two words: cuInit answers 101. */
static int visible_order_is_bad(void)
{
    const char *order = getenv("CUDA_DEVICE_ORDER");

    return order && strcmp(order, "PCI_BUS_ID") && strcmp(order, "FASTEST_FIRST");
}

#endif
