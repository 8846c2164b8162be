// The bytes of one GGUF file: a file that is read with pread and possibly mapped, or a piece of memory.
//
// The metadata (header, keys, tensor table) is always parsed from a private heap copy that grows as the parser walks on, so that what has been
// checked cannot change afterwards (a mapping shows what other processes write to the file) and no access to it can fault. Only tensor data is
// read through the mapping.
#pragma once

#include "hysparse.h"

struct hs_source {
    int             fd;        // -1: none
    const uint8_t * memory;    // not owned; NULL for files
    uint64_t        size;      // bytes of the file
    void *          map;       // the whole file, read-only; NULL: not mapped
    uint8_t *       meta;      // copy of the first meta_size bytes
    uint64_t        meta_size, meta_capacity;
    char *          path;
    char            label[200]; // the end of the path, for messages
};

// A failed mmap is not an error: map stays NULL. *src is empty after a failure.
int  hs_source_open(struct hs_source * src, const char * path, bool use_mmap, hs_error * err);
// `memory` must outlive *src.
int  hs_source_open_memory(struct hs_source * src, const void * memory, size_t size, hs_error * err);
void hs_source_close(struct hs_source * src);
// Make meta hold the first `end` bytes, end <= size. meta may move.
int  hs_source_need(struct hs_source * src, uint64_t end, hs_error * err);
// Keep only the first `size` bytes of meta, which may move.
void hs_source_trim(struct hs_source * src, uint64_t size);
// Copy bytes [offset, offset + size) of the file, which must lie inside `size`. HS_E_IO: the file got shorter, or cannot be read.
int  hs_source_read(const struct hs_source * src, uint64_t offset, uint64_t size, void * dst, hs_error * err);
