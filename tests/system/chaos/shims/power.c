/* Records what happens to the files whose path begins with CHAOS_POWER_FILES, in the file CHAOS_POWER_LOG, so that they
   can be built again as a power cut would have left them. A record is appended in one write: a head, the path, data. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE = 2, SYNC = 3, UNLINK = 4 };

struct head {
    uint32_t kind, path_length;
    uint64_t offset, length;
};

static int log_fd = -1;
static const char *files;
static size_t files_length;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_POWER_LOG");
    files = getenv("CHAOS_POWER_FILES");
    if (!path || !files)
        return;
    files_length = strlen(files);
    log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int is_ours(const char *path, size_t length)
{
    /* The index in shared memory is built anew after a power cut, and the folder of locks is no part of the data. */
    static const char index[] = "-shm", live[] = "-live";
    const char *slash = files ? strrchr(files, '/') : NULL;
    if (log_fd < 0 || !slash)
        return 0;
    if (length == (size_t)(slash - files) && !memcmp(path, files, length))
        return 1; /* the folder, whose sync makes a removal certain */
    if (length < files_length || memcmp(path, files, files_length))
        return 0;
    if (!strncmp(path + files_length, live, sizeof live - 1))
        return 0;
    return length < sizeof index - 1 || memcmp(path + length - (sizeof index - 1), index, sizeof index - 1);
}

static void record_path(uint32_t kind, const char *path, size_t path_length, off_t offset, const void *data, size_t length)
{
    struct head head = {kind, (uint32_t)path_length, (uint64_t)offset, (uint64_t)length};
    struct iovec parts[] = {
        {&head, sizeof head}, {(void *)path, path_length}, {(void *)data, data ? length : 0}};
    if (is_ours(path, path_length) && REAL(writev)(log_fd, parts, 3) < 0)
        abort();
}

static void record(uint32_t kind, int fd, off_t offset, const void *data, size_t length)
{
    char link[64], path[4096];
    if (log_fd < 0)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t path_length = readlink(link, path, sizeof path);
    if (path_length > 0)
        record_path(kind, path, (size_t)path_length, offset, data, length);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    ssize_t written = REAL(pwrite)(fd, data, length, offset);
    if (written > 0)
        record(WRITE, fd, offset, data, (size_t)written);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    ssize_t written = REAL(pwrite64)(fd, data, length, offset);
    if (written > 0)
        record(WRITE, fd, offset, data, (size_t)written);
    return written;
}

ssize_t write(int fd, const void *data, size_t length)
{
    ssize_t written = REAL(write)(fd, data, length);
    if (written > 0 && log_fd >= 0) {
        off_t end = lseek(fd, 0, SEEK_CUR);
        if (end >= written)
            record(WRITE, fd, end - written, data, (size_t)written);
    }
    return written;
}

int ftruncate(int fd, off_t length)
{
    int result = REAL(ftruncate)(fd, length);
    if (!result)
        record(TRUNCATE, fd, length, NULL, 0);
    return result;
}

int ftruncate64(int fd, off64_t length)
{
    int result = REAL(ftruncate64)(fd, length);
    if (!result)
        record(TRUNCATE, fd, length, NULL, 0);
    return result;
}

int fsync(int fd)
{
    int result = REAL(fsync)(fd);
    if (!result)
        record(SYNC, fd, 0, NULL, 0);
    return result;
}

int fdatasync(int fd)
{
    int result = REAL(fdatasync)(fd);
    if (!result)
        record(SYNC, fd, 0, NULL, 0);
    return result;
}

int unlink(const char *path)
{
    int result = REAL(unlink)(path);
    if (!result)
        record_path(UNLINK, path, strlen(path), 0, NULL, 0);
    return result;
}
