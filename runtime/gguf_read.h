// Internal view of a checked GGUF (see gguf_read.c): typed look-ups for hparams.c and tensor data for weights.c.
// Everything is bounds-checked at open; these calls only look things up. Thread-safe: an open hs_gguf never changes.
#pragma once

#include "ggml.h"
#include "hysparse.h"

struct hs_gguf_tensor {
    const char *   name;     // NUL-terminated, < 64 bytes, unique
    enum ggml_type type;
    int32_t        n_dims;   // 1..4
    int64_t        ne[4];    // >= 1 each (unused dims 1); ne[0] a multiple of the type's block
    uint64_t       offset;   // from the start of the file
    uint64_t       size;     // bytes, inside the file
    int32_t        file;     // index of the split file
};

// As hs_gguf_open, from memory that must outlive the object (not mapped; files of a split model are refused).
int hs_gguf_open_memory(const void * data, size_t size, hs_gguf ** out, hs_error * err);

int64_t hs_gguf_find_tensor(const hs_gguf * g, const char * name);                    // index or -1; O(log n)
const struct hs_gguf_tensor * hs_gguf_tensor_at(const hs_gguf * g, int64_t i);

// Address of a tensor's data in the mapping, or NULL when the file is not mapped (use hs_gguf_read_tensor then).
const void * hs_gguf_tensor_mapped(const hs_gguf * g, const struct hs_gguf_tensor * t);
// Copy `size` bytes of a tensor's data from byte `offset` on (mapped or not). HS_E_IO when the file is shorter by now.
int hs_gguf_read_tensor(const hs_gguf * g, const struct hs_gguf_tensor * t, uint64_t offset, uint64_t size, void * dst, hs_error * err);
// The mapping of split file `file` (page-aligned base and size), NULL when not mapped. For ggml_backend_cpu_buffer_from_ptr.
void *  hs_gguf_file_base(const hs_gguf * g, int32_t file, size_t * size);
int32_t hs_gguf_n_files(const hs_gguf * g);
const char * hs_gguf_path(const hs_gguf * g, int32_t file);

// Typed look-ups. Absent key: HS_OK and *out (and *n_out) untouched when !required, else HS_E_MODEL naming the key. Wrong type or out of range: HS_E_MODEL
// naming key, type/value found and expected. Integers of any width and sign are accepted where the value fits (files in the wild vary).
int hs_gguf_get_i64 (const hs_gguf * g, const char * key, bool required, int64_t min, int64_t max, int64_t * out, hs_error * err);
int hs_gguf_get_i32 (const hs_gguf * g, const char * key, bool required, int32_t min, int32_t max, int32_t * out, hs_error * err);
int hs_gguf_get_f32 (const hs_gguf * g, const char * key, bool required, float * out, hs_error * err);      // f32 or f64, finite
int hs_gguf_get_bool(const hs_gguf * g, const char * key, bool required, bool * out, hs_error * err);
// *out points into the file's metadata and is NOT NUL-terminated; *len bytes, valid UTF-8 is not promised.
int hs_gguf_get_str (const hs_gguf * g, const char * key, bool required, const char ** out, size_t * len, hs_error * err);
// An integer (or bool) array of exactly n elements, or a scalar that is repeated n times (llama.cpp's convention for per-layer keys).
// n < 0: any length up to -n (a scalar counts as length 1); *n_out (may be NULL) gets the length. Each element in min..max.
int hs_gguf_get_i32_arr(const hs_gguf * g, const char * key, bool required, int64_t n, int32_t min, int32_t max, int32_t * out, int64_t * n_out, hs_error * err);
