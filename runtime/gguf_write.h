// Writing a GGUF v3 file, streamed: keys and tensor table first, then the tensors' data in the table's order.
//
//   hs_gguf_writer_new -> hs_gguf_writer_kv / _copy_kv ... -> hs_gguf_writer_tensor ... -> _begin -> _data ... -> _finish -> _free
//
// Nothing touches the disk before _begin (hs_gguf_writer_size tells the file's size by then). The data goes to a temporary file beside `path`;
// _finish syncs and renames it; _free without a successful _finish removes it. So `path` is either what it was or complete.
// Errors: HS_E_MEMORY, HS_E_IO, and HS_E_INTERNAL for calls in the wrong order or data that does not fit the table.
#pragma once

#include "ggml.h"
#include "hysparse.h"

struct hs_gguf_writer;

// alignment: of tensor data in bytes, a power of two; the caller also writes general.alignment where it is not 32.
int  hs_gguf_writer_new(const char * path, uint32_t alignment, struct hs_gguf_writer ** out, hs_error * err);
void hs_gguf_writer_free(struct hs_gguf_writer * w);

// A scalar (its little-endian bytes) or a string (its bytes without a length).
int  hs_gguf_writer_kv(struct hs_gguf_writer * w, const char * key, hs_gguf_type type, const void * data, size_t size, hs_error * err);
int  hs_gguf_writer_kv_u32(struct hs_gguf_writer * w, const char * key, uint32_t value, hs_error * err);
// Key number i of g, byte for byte, arrays too.
int  hs_gguf_writer_copy_kv(struct hs_gguf_writer * w, const hs_gguf * g, int64_t i, hs_error * err);
// ne[0..n_dims): ggml order. The data's size follows from type and shape.
int  hs_gguf_writer_tensor(struct hs_gguf_writer * w, const char * name, enum ggml_type type, int32_t n_dims, const int64_t * ne, hs_error * err);
uint64_t hs_gguf_writer_size(const struct hs_gguf_writer * w);

int  hs_gguf_writer_begin(struct hs_gguf_writer * w, hs_error * err);
// The next `size` bytes of the present tensor; a call may not run over its end. Padding is added behind its last byte.
int  hs_gguf_writer_data(struct hs_gguf_writer * w, const void * data, size_t size, hs_error * err);
int  hs_gguf_writer_finish(struct hs_gguf_writer * w, hs_error * err);
