/* Compiled with -O2 and -D_FORTIFY_SOURCE, once for each level: the compiler turns calls whose target it knows into those of __memcpy_chk and kin.
   Each case writes `len` bytes to a target of 16. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char from[64] = "0123456789abcdef0123456789abcdef0123456789abcdef";

/* Returns a byte of what was written, so that nothing is left out. */
int FORTIFIED(const char *what, unsigned long len) {
    char target[16];
    char text[64];
    /* A size that is known when the program runs: level 3 checks this one too. */
    volatile unsigned long sixteen = 16;
    unsigned long size = sixteen;
    memset(target, 0, sizeof target);
    memset(text, 0, sizeof text);
    memcpy(text, from, len < 63 ? len : 63);
    if (!strcmp(what, "memcpy"))
        memcpy(target, from, len);
    else if (!strcmp(what, "memmove"))
        memmove(target, from, len);
    else if (!strcmp(what, "memset"))
        memset(target, 'x', len);
    else if (!strcmp(what, "strcpy"))
        strcpy(target, text);
    else if (!strcmp(what, "strcat"))
        strcat(target, text);
    else if (!strcmp(what, "strncpy"))
        strncpy(target, text, len);
    else if (!strcmp(what, "sprintf"))
        sprintf(target, "%s", text);
    else if (!strcmp(what, "snprintf"))
        snprintf(target, len, "%s", text);
    else if (!strcmp(what, "read"))
        return read(0, target, len) < 0 ? -1 : target[0];
    else if (!strcmp(what, "heap")) {
        char *heap = malloc(size);
        if (!heap)
            return -1;
        memcpy(heap, from, len);
        memcpy(target, heap, 8);
        free(heap);
    } else
        return -1;
    return target[0];
}
