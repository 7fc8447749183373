/* Storage that fails now and then: reads of files whose path holds FLAKY_MATCH end with EIO, each with probability FLAKY_P. Preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int file) {
    const char *match = getenv("FLAKY_MATCH"), *chance = getenv("FLAKY_P");
    char handle[48], path[4096];
    if (!match || !chance) return 0;
    snprintf(handle, sizeof handle, "/proc/self/fd/%d", file);
    ssize_t length = readlink(handle, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, match) != NULL && drand48() < atof(chance);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL_SOMETIMES(file) if (fails(file)) { errno = EIO; return -1; }

ssize_t read(int file, void *to, size_t size) { REAL(read); FAIL_SOMETIMES(file) return real(file, to, size); }
ssize_t pread(int file, void *to, size_t size, off_t at) { REAL(pread); FAIL_SOMETIMES(file) return real(file, to, size, at); }
ssize_t pread64(int file, void *to, size_t size, off64_t at) { REAL(pread64); FAIL_SOMETIMES(file) return real(file, to, size, at); }
