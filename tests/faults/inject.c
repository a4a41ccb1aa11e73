// Preloaded into a process: counts the file-system calls beneath a folder that change something, and lets one of them
// fail or kill the process. `arm` begins it; until then every call passes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum Kind { COUNT, KILL, TEAR, FAIL, FULL };  // TEAR: half of a write, then a kill; FULL: every later write fails too

static char folder[PATH_MAX];
static size_t folder_length;
static int kind = COUNT, number;
static long target;
static atomic_long seen;

void arm(const char *beneath, int what, long at, int error) {
  folder_length = strlen(strcpy(folder, beneath));
  kind = what, number = error, target = at;
  atomic_store(&seen, 0);
}

long calls(void) { return atomic_load(&seen); }

static int is_beneath(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

// The path of a descriptor, or of a name at one (AT_FDCWD: the working folder).
static int is_watched(int at, const char *name) {
  char link[64], path[2 * PATH_MAX];
  ssize_t length = 0;
  if (!folder_length) return 0;
  if (!name || name[0] != '/') {
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
  }
  path[length] = 0;
  if (name) snprintf(path + length, sizeof path - length, length ? "/%s" : "%s", name);
  return is_beneath(path);
}

// Whether this call is to fail; `takes_room`: on a full disk too.
static int fails(int at, const char *name, int takes_room) {
  if (!is_watched(at, name)) return 0;
  const long now = atomic_fetch_add(&seen, 1) + 1;
  if (kind == KILL && now == target) kill(getpid(), SIGKILL);
  const int is_hit = (kind == FAIL && now == target) || (kind == FULL && now >= target && takes_room);
  if (is_hit) errno = number;
  return is_hit;
}

static int tears(void) { return kind == TEAR && atomic_load(&seen) == target; }

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  const int is_file = fd > 2;
  if (is_file && fails(fd, NULL, 1)) return -1;
  if (is_file && is_watched(fd, NULL) && tears()) {
    real(fd, data, size / 2);
    kill(getpid(), SIGKILL);
  }
  return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  return fails(fd, NULL, 1) ? -1 : real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  return fails(fd, NULL, 1) ? -1 : real(fd, data, size, at);
}

#define SIMPLE(name, parameters, arguments, at, path, takes_room) \
  int name parameters {                                           \
    REAL(name);                                                   \
    return fails(at, path, takes_room) ? -1 : real arguments;     \
  }

SIMPLE(fsync, (int fd), (fd), fd, NULL, 1)
SIMPLE(fdatasync, (int fd), (fd), fd, NULL, 1)
SIMPLE(ftruncate, (int fd, off_t size), (fd, size), fd, NULL, 0)
SIMPLE(ftruncate64, (int fd, off64_t size), (fd, size), fd, NULL, 0)
SIMPLE(truncate, (const char *path, off_t size), (path, size), AT_FDCWD, path, 0)
SIMPLE(truncate64, (const char *path, off64_t size), (path, size), AT_FDCWD, path, 0)
SIMPLE(unlink, (const char *path), (path), AT_FDCWD, path, 0)
SIMPLE(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path, 0)
SIMPLE(rmdir, (const char *path), (path), AT_FDCWD, path, 0)
SIMPLE(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)
SIMPLE(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path, 1)
SIMPLE(rename, (const char *from, const char *to), (from, to), AT_FDCWD, to, 0)
SIMPLE(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to, 0)

#define OPEN(name, parameters, before, at)                                               \
  int name parameters {                                                                  \
    REAL(name);                                                                          \
    va_list list;                                                                        \
    va_start(list, flags);                                                               \
    const mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(list, mode_t) : 0; \
    va_end(list);                                                                        \
    if ((flags & O_ACCMODE) != O_RDONLY && fails(at, path, (flags & O_CREAT) != 0)) return -1; \
    return real before;                                                                  \
  }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), at)
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), at)
