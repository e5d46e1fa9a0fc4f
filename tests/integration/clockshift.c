/* Shifts the wall clock of one process by the seconds in the file CLOCKSHIFT names, read at each look. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    static const char *path;
    char text[32] = {0};
    if (!path && !(path = getenv("CLOCKSHIFT"))) return 0;
    int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    ssize_t had = read(file, text, sizeof text - 1);
    close(file);
    return had > 0 ? strtol(text, NULL, 10) : 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int answer = real(at, zone);
    if (answer == 0 && at) at->tv_sec += shift();
    return answer;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, at);
    if (answer == 0 && clock == CLOCK_REALTIME) at->tv_sec += shift();
    return answer;
}
