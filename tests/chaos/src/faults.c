/* What a process meets when its machine fails it: a clock that is off, a volume that is full, a sync that
 * fails. Loaded before the C library (LD_PRELOAD), and steered from the environment:
 *
 *   COFFER_FAULTS_CLOCK_MS  added to the clock of the day, in milliseconds
 *   COFFER_FAULTS_FOLDER    the volume; only files below it fail
 *   COFFER_FAULTS_SWITCH    a file whose first letter says what fails there: "f", every write, for the volume
 *                           is full; "s", every sync; anything else, or no file: nothing
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The C library's own function of a name, found once. */
#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real)                                                  \
    real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t clock, struct timespec *time)
{
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real(clock, time);
    const char *text = getenv("COFFER_FAULTS_CLOCK_MS");
    if (result == 0 && clock == CLOCK_REALTIME && text)
        time->tv_sec += atoll(text) / 1000;
    return result;
}

/* Whether what the switch says fails for this file. */
static int fails(int file, char what)
{
    int saved = errno;
    const char *path = getenv("COFFER_FAULTS_SWITCH"), *folder = getenv("COFFER_FAULTS_FOLDER");
    char said = 0, name[64], target[4096];
    ssize_t length = -1;
    if (path && folder) {
        int handle = open(path, O_RDONLY | O_CLOEXEC);
        if (handle >= 0) {
            if (read(handle, &said, 1) != 1)
                said = 0;
            close(handle);
        }
        if (said == what) {
            snprintf(name, sizeof name, "/proc/self/fd/%d", file);
            length = readlink(name, target, sizeof target);
        }
    }
    errno = saved;
    return length > 0 && (size_t)length > strlen(folder) &&
           strncmp(target, folder, strlen(folder)) == 0;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

ssize_t write(int file, const void *bytes, size_t count)
{
    REAL(ssize_t, write, int, const void *, size_t);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, parts, count);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at)
{
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, bytes, count, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, bytes, count, at);
}

int fallocate(int file, int mode, off_t at, off_t length)
{
    REAL(int, fallocate, int, int, off_t, off_t);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, mode, at, length);
}

int fallocate64(int file, int mode, off64_t at, off64_t length)
{
    REAL(int, fallocate64, int, int, off64_t, off64_t);
    return fails(file, 'f') ? fail(ENOSPC) : real(file, mode, at, length);
}

int fsync(int file)
{
    REAL(int, fsync, int);
    return fails(file, 's') ? fail(EIO) : real(file);
}

int fdatasync(int file)
{
    REAL(int, fdatasync, int);
    return fails(file, 's') ? fail(EIO) : real(file);
}
