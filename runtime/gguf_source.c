#include "gguf_source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "status.h"

#define META_CHUNK (1u << 18) // bytes of metadata fetched at a time

static int set_path(struct hs_source * src, const char * path, hs_error * err) {
    size_t len = strlen(path);
    src->path  = malloc(len + 1);
    if (!src->path) {
        return hs_fail(err, HS_E_MEMORY, "cannot allocate %zu bytes for a path", len + 1);
    }
    memcpy(src->path, path, len + 1);
    if (len < sizeof src->label) {
        memcpy(src->label, path, len + 1);
    } else {
        size_t keep = sizeof src->label - 4;
        memcpy(src->label, "...", 3);
        memcpy(src->label + 3, path + len - keep, keep + 1);
    }
    return HS_OK;
}

static void clear(struct hs_source * src) {
    memset(src, 0, sizeof *src);
    src->fd = -1;
}

void hs_source_close(struct hs_source * src) {
    if (src->map) {
        munmap(src->map, (size_t) src->size);
    }
    if (src->fd >= 0) {
        close(src->fd);
    }
    free(src->meta);
    free(src->path);
    clear(src);
}

static int open_file(struct hs_source * src, const char * path, bool use_mmap, hs_error * err) {
    HS_TRY(set_path(src, path, err));
    do {
        src->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // NONBLOCK: a pipe without a writer must not hang us
    } while (src->fd < 0 && errno == EINTR);
    if (src->fd < 0) {
        return hs_fail(err, HS_E_IO, "%s: cannot open: %s", src->label, strerror(errno));
    }
    struct stat st;
    if (fstat(src->fd, &st) != 0) {
        return hs_fail(err, HS_E_IO, "%s: cannot stat: %s", src->label, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return hs_fail(err, HS_E_IO, "%s: is %s, expected a regular file", src->label, S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    }
    if (st.st_size < 0 || (uint64_t) st.st_size > SIZE_MAX / 2) {
        return hs_fail(err, HS_E_IO, "%s: has %jd bytes, more than this machine can address", src->label, (intmax_t) st.st_size);
    }
    src->size = (uint64_t) st.st_size;
    if (use_mmap && src->size > 0) {
        void * map = mmap(NULL, (size_t) src->size, PROT_READ, MAP_SHARED, src->fd, 0);
        if (map == MAP_FAILED) {
            hs_log(2, "%s: cannot map (%s): reading instead", src->label, strerror(errno));
        } else {
            src->map = map;
        }
    }
    return HS_OK;
}

int hs_source_open(struct hs_source * src, const char * path, bool use_mmap, hs_error * err) {
    clear(src);
    int rc = open_file(src, path, use_mmap, err);
    if (rc != HS_OK) {
        hs_source_close(src);
    }
    return rc;
}

int hs_source_open_memory(struct hs_source * src, const void * memory, size_t size, hs_error * err) {
    clear(src);
    src->memory = memory;
    src->size   = size;
    return set_path(src, "(memory)", err);
}

int hs_source_read(const struct hs_source * src, uint64_t offset, uint64_t size, void * dst, hs_error * err) {
    if (size > src->size || offset > src->size - size) {
        return hs_fail(err, HS_E_ARG, "%s: read of %" PRIu64 " bytes at offset %" PRIu64 " of a file of %" PRIu64, src->label, size, offset, src->size);
    }
    if (size == 0) {
        return HS_OK;
    }
    if (src->memory) {
        memcpy(dst, src->memory + offset, (size_t) size);
        return HS_OK;
    }
    uint8_t * to = dst;
    while (size > 0) {
        size_t  part = size > (1u << 30) ? (1u << 30) : (size_t) size; // one read is limited to 2 GiB on Linux and macOS
        ssize_t n    = pread(src->fd, to, part, (off_t) offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return hs_fail(err, HS_E_IO, "%s: cannot read %zu bytes at offset %" PRIu64 ": %s", src->label, part, offset, strerror(errno));
        }
        if (n == 0) {
            return hs_fail(err, HS_E_IO, "%s: ends at offset %" PRIu64 ", it had %" PRIu64 " bytes when it was opened", src->label, offset, src->size);
        }
        to += n;
        offset += (uint64_t) n;
        size -= (uint64_t) n;
    }
    return HS_OK;
}

int hs_source_need(struct hs_source * src, uint64_t end, hs_error * err) {
    if (end <= src->meta_size) {
        return HS_OK;
    }
    // Doubling, but never past the end of the file: memory stays proportional to what the file really holds.
    uint64_t want = src->meta_size * 2 > META_CHUNK ? src->meta_size * 2 : META_CHUNK;
    want          = want < end ? end : want;
    want          = want > src->size ? src->size : want;
    if (want > src->meta_capacity) {
        uint8_t * grown = realloc(src->meta, (size_t) want);
        if (!grown) {
            return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate %" PRIu64 " bytes for the metadata", src->label, want);
        }
        src->meta          = grown;
        src->meta_capacity = want;
    }
    HS_TRY(hs_source_read(src, src->meta_size, want - src->meta_size, src->meta + src->meta_size, err));
    src->meta_size = want;
    return HS_OK;
}

void hs_source_trim(struct hs_source * src, uint64_t size) {
    if (size < src->meta_size) {
        uint8_t * smaller = realloc(src->meta, size ? (size_t) size : 1);
        src->meta         = smaller ? smaller : src->meta;
        src->meta_size    = size;
        src->meta_capacity = size;
    }
}
