// Writing GGUF files: see gguf_write.h.
#include "gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "status.h"

struct bytes { uint8_t * data; size_t size, cap; };

struct hs_gguf_writer {
    char * path, * tmp;                  // tmp exists on disk while fd >= 0
    int fd;
    uint32_t alignment;
    struct bytes kv, infos;
    uint64_t n_kv, data_size;            // data_size: of all tensors, padded
    uint64_t * tensor_size;              // [n_tensors]
    size_t n_tensors, cap_tensors;
    size_t at_tensor;                    // the tensor that data goes to, and how much of it is there
    uint64_t at_byte;
};

static uint64_t padded(uint64_t n, uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

static int put(struct bytes * b, const void * data, size_t size, hs_error * err) {
    if (size > SIZE_MAX / 2 - b->size) return hs_fail(err, HS_E_MEMORY, "GGUF metadata: %zu bytes more are too many", size);
    if (b->size + size > b->cap) {
        const size_t cap = (b->size + size) * 2;
        uint8_t * p = realloc(b->data, cap);
        if (!p) return hs_fail(err, HS_E_MEMORY, "GGUF metadata: cannot allocate %zu bytes", cap);
        b->data = p;
        b->cap = cap;
    }
    if (size > 0) memcpy(b->data + b->size, data, size);
    b->size += size;
    return HS_OK;
}

static int put_uint(struct bytes * b, uint64_t v, size_t n_bytes, hs_error * err) {
    uint8_t le[8];
    for (size_t i = 0; i < n_bytes; i++) le[i] = (uint8_t) (v >> (8 * i));
    return put(b, le, n_bytes, err);
}

static int put_str(struct bytes * b, const void * s, size_t n, hs_error * err) {
    HS_TRY(put_uint(b, n, 8, err));
    return put(b, s, n, err);
}

int hs_gguf_writer_new(const char * path, uint32_t alignment, struct hs_gguf_writer ** out, hs_error * err) {
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        return hs_fail(err, HS_E_ARG, "%s: found alignment %" PRIu32 ", expected a power of two", path, alignment);
    }
    struct hs_gguf_writer * w = calloc(1, sizeof *w);
    const size_t n = strlen(path) + 1;
    char * copy = malloc(n), * tmp = malloc(n + 24);
    if (!w || !copy || !tmp) {
        free(w);
        free(copy);
        free(tmp);
        return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate a GGUF writer", path);
    }
    memcpy(copy, path, n);
    w->path = copy;
    w->tmp = tmp;
    w->fd = -1;
    w->alignment = alignment;
    *out = w;
    return HS_OK;
}

void hs_gguf_writer_free(struct hs_gguf_writer * w) {
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->tmp);
    }
    free(w->path);
    free(w->tmp);
    free(w->kv.data);
    free(w->infos.data);
    free(w->tensor_size);
    free(w);
}

// --- keys and tensor table ---
static int put_key(struct hs_gguf_writer * w, const char * key, hs_gguf_type type, hs_error * err) {
    HS_TRY(put_str(&w->kv, key, strlen(key), err));
    HS_TRY(put_uint(&w->kv, (uint64_t) type, 4, err));
    w->n_kv++;
    return HS_OK;
}

int hs_gguf_writer_kv(struct hs_gguf_writer * w, const char * key, hs_gguf_type type, const void * data, size_t size, hs_error * err) {
    HS_TRY(put_key(w, key, type, err));
    return type == HS_GGUF_STR ? put_str(&w->kv, data, size, err) : put(&w->kv, data, size, err);
}

int hs_gguf_writer_kv_u32(struct hs_gguf_writer * w, const char * key, uint32_t value, hs_error * err) {
    HS_TRY(put_key(w, key, HS_GGUF_U32, err));
    return put_uint(&w->kv, value, 4, err);
}

int hs_gguf_writer_copy_kv(struct hs_gguf_writer * w, const hs_gguf * g, int64_t i, hs_error * err) {
    size_t size;
    const void * raw = hs_gguf_raw(g, i, &size);
    const hs_gguf_type type = hs_gguf_kv_type(g, i);
    if (type != HS_GGUF_ARR) return hs_gguf_writer_kv(w, hs_gguf_key(g, i), type, raw, size, err);
    HS_TRY(put_key(w, hs_gguf_key(g, i), type, err));
    HS_TRY(put_uint(&w->kv, (uint64_t) hs_gguf_arr_type(g, i), 4, err));
    HS_TRY(put_uint(&w->kv, hs_gguf_arr_len(g, i), 8, err));
    return put(&w->kv, raw, size, err);
}

int hs_gguf_writer_tensor(struct hs_gguf_writer * w, const char * name, enum ggml_type type, int32_t n_dims, const int64_t * ne, hs_error * err) {
    if (w->n_tensors == w->cap_tensors) {
        const size_t cap = w->cap_tensors ? w->cap_tensors * 2 : 256;
        uint64_t * p = realloc(w->tensor_size, cap * sizeof *p);
        if (!p) return hs_fail(err, HS_E_MEMORY, "tensor %s: cannot allocate a table of %zu tensors", name, cap);
        w->tensor_size = p;
        w->cap_tensors = cap;
    }
    HS_TRY(put_str(&w->infos, name, strlen(name), err));
    HS_TRY(put_uint(&w->infos, (uint64_t) n_dims, 4, err));
    uint64_t size = ggml_row_size(type, ne[0]);
    for (int32_t i = 0; i < n_dims; i++) {
        HS_TRY(put_uint(&w->infos, (uint64_t) ne[i], 8, err));
        if (i > 0) size *= (uint64_t) ne[i];
    }
    HS_TRY(put_uint(&w->infos, (uint64_t) type, 4, err));
    HS_TRY(put_uint(&w->infos, w->data_size, 8, err));
    w->tensor_size[w->n_tensors++] = size;
    w->data_size += padded(size, w->alignment);
    return HS_OK;
}

static uint64_t meta_size(const struct hs_gguf_writer * w) { return padded(24 + w->kv.size + w->infos.size, w->alignment); }

uint64_t hs_gguf_writer_size(const struct hs_gguf_writer * w) { return meta_size(w) + w->data_size; }

// --- the file ---
static int write_all(struct hs_gguf_writer * w, const void * data, size_t size, hs_error * err) {
    const char * p = data;
    while (size > 0) {
        const ssize_t n = write(w->fd, p, size < (1u << 30) ? size : (1u << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return hs_fail(err, HS_E_IO, "%s: cannot write %zu bytes: %s", w->tmp, size, strerror(n < 0 ? errno : EIO));
        p += n;
        size -= (size_t) n;
    }
    return HS_OK;
}

static int write_zeros(struct hs_gguf_writer * w, uint64_t n, hs_error * err) {
    static const char zeros[4096];
    while (n > 0) {
        const size_t m = n < sizeof zeros ? (size_t) n : sizeof zeros;
        HS_TRY(write_all(w, zeros, m, err));
        n -= m;
    }
    return HS_OK;
}

// Open "<path>.<random>.tmp", which did not exist before.
static int open_tmp(struct hs_gguf_writer * w, hs_error * err) {
    for (uint32_t attempt = 0; attempt < 100; attempt++) {
        struct timespec t = { 0, 0 };
        clock_gettime(CLOCK_REALTIME, &t);
        const uint32_t tag = ((uint32_t) t.tv_nsec ^ ((uint32_t) getpid() << 12)) + attempt * 2654435761u;
        snprintf(w->tmp, strlen(w->path) + 24, "%s.%08" PRIx32 ".tmp", w->path, tag);
        w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) return HS_OK;
        if (errno != EEXIST) break;
    }
    return hs_fail(err, HS_E_IO, "%s: cannot create the file: %s", w->tmp, strerror(errno));
}

// Tensors of no bytes at all need no data call.
static void skip_empty(struct hs_gguf_writer * w) {
    while (w->at_tensor < w->n_tensors && w->tensor_size[w->at_tensor] == 0) w->at_tensor++;
}

int hs_gguf_writer_begin(struct hs_gguf_writer * w, hs_error * err) {
    if (w->fd >= 0) return hs_fail(err, HS_E_INTERNAL, "%s: begun twice", w->path);
    struct bytes head = { 0 };
    int rc = put(&head, "GGUF", 4, err);
    if (rc == HS_OK) rc = put_uint(&head, 3, 4, err);
    if (rc == HS_OK) rc = put_uint(&head, w->n_tensors, 8, err);
    if (rc == HS_OK) rc = put_uint(&head, w->n_kv, 8, err);
    if (rc == HS_OK) rc = open_tmp(w, err);
    if (rc == HS_OK) rc = write_all(w, head.data, head.size, err);
    if (rc == HS_OK) rc = write_all(w, w->kv.data, w->kv.size, err);
    if (rc == HS_OK) rc = write_all(w, w->infos.data, w->infos.size, err);
    if (rc == HS_OK) rc = write_zeros(w, meta_size(w) - (24 + w->kv.size + w->infos.size), err);
    free(head.data);
    skip_empty(w);
    return rc;
}

int hs_gguf_writer_data(struct hs_gguf_writer * w, const void * data, size_t size, hs_error * err) {
    if (w->fd < 0 || w->at_tensor >= w->n_tensors || size > w->tensor_size[w->at_tensor] - w->at_byte) {
        return hs_fail(err, HS_E_INTERNAL, "%s: %zu bytes of data do not fit tensor %zu of %zu", w->path, size, w->at_tensor, w->n_tensors);
    }
    HS_TRY(write_all(w, data, size, err));
    w->at_byte += size;
    const uint64_t whole = w->tensor_size[w->at_tensor];
    if (w->at_byte == whole) {
        HS_TRY(write_zeros(w, padded(whole, w->alignment) - whole, err));
        w->at_byte = 0;
        w->at_tensor++;
        skip_empty(w);
    }
    return HS_OK;
}

// The directory's entry is durable only when the directory is synced too; file systems that cannot do it are not an error.
static void sync_directory(const char * path) {
    const char * slash = strrchr(path, '/');
    char * dir = malloc(strlen(path) + 2);
    if (!dir) return;
    const size_t n = slash ? (size_t) (slash - path) : 0;
    memcpy(dir, path, n);
    strcpy(dir + n, slash ? (n == 0 ? "/" : "") : ".");
    const int fd = open(dir, O_RDONLY | O_CLOEXEC);
    free(dir);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

int hs_gguf_writer_finish(struct hs_gguf_writer * w, hs_error * err) {
    if (w->fd < 0 || w->at_tensor != w->n_tensors) {
        return hs_fail(err, HS_E_INTERNAL, "%s: finished after %zu of %zu tensors", w->path, w->at_tensor, w->n_tensors);
    }
    if (fsync(w->fd) != 0) return hs_fail(err, HS_E_IO, "%s: cannot sync: %s", w->tmp, strerror(errno));
    const int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0 || rename(w->tmp, w->path) != 0) {
        const int e = errno;
        unlink(w->tmp);
        return hs_fail(err, HS_E_IO, "%s: cannot put the finished file in place: %s", w->path, strerror(e));
    }
    sync_directory(w->path);
    return HS_OK;
}
