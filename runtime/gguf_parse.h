// One parsed GGUF file, before the files of a split model are joined.
#pragma once

#include "gguf_read.h"
#include "gguf_source.h"

#define HS_SPLIT_MAX 65535 // split.count is a u16 in llama.cpp's files

struct hs_gguf_kv {
    size_t       key;               // offset in `keys`, NUL-terminated
    uint32_t     key_len;           // 1..65535
    hs_gguf_type type, arr_type;    // arr_type: of an array's elements
    uint64_t     arr_len;           // elements of an array, 0 for scalars
    uint64_t     raw, raw_size;     // the value in source.meta (see hs_gguf_raw)
    uint64_t     offset;            // of the pair, from the start of the file
};

struct hs_name_ref { const char * s; size_t len; uint64_t index; };
struct hs_names { char * s; size_t size, capacity; }; // names one after the other, each NUL-terminated; s moves as it grows

struct hs_gguf_shard {
    struct hs_source        source;
    struct hs_gguf_kv *     kv;
    struct hs_name_ref *    kv_sorted;   // n_kv, by key
    struct hs_gguf_tensor * tensors;     // in the file's order
    size_t                  n_kv, n_tensors, kv_capacity, tensor_capacity;
    struct hs_names         keys, tensor_names; // apart: kv_sorted points into keys while tensor_names still grows
    size_t                  meta_used;   // header, keys and tensor table, in bytes
    uint32_t                alignment;
    int32_t                 split_no, split_count, split_tensors; // count <= 1: not split; tensors -1: key absent
};

// Parse and check everything in an opened source. On failure the shard still has to be freed.
int  hs_gguf_shard_parse(struct hs_gguf_shard * s, hs_error * err);
void hs_gguf_shard_free(struct hs_gguf_shard * s);
// Index of a key, or -1.
int64_t hs_gguf_shard_find(const struct hs_gguf_shard * s, const char * key);

// The tensor table, from byte `pos` on (gguf_tensors.c): reads n entries, then checks types, sizes, offsets and overlaps.
int hs_gguf_shard_parse_tensors(struct hs_gguf_shard * s, uint64_t pos, uint64_t n, hs_error * err);

// --- shared by the parser's files (gguf_bytes.c) ---

// A reading position. Every read checks what is left of the file first.
struct hs_cursor { struct hs_gguf_shard * shard; uint64_t pos; hs_error * err; };
uint64_t hs_cursor_left(const struct hs_cursor * c);
// Skip n bytes that must exist; `what` names them in the message. Afterwards shard->source.meta holds them.
int hs_cursor_take(struct hs_cursor * c, uint64_t n, const char * what);
int hs_cursor_u32(struct hs_cursor * c, const char * what, uint32_t * out);
int hs_cursor_u64(struct hs_cursor * c, const char * what, uint64_t * out);
// A length-prefixed name (key or tensor name) of 1..max_len bytes, valid UTF-8 without NUL, copied to `names` at *at.
int hs_cursor_name(struct hs_cursor * c, const char * what, uint64_t index, uint64_t max_len, struct hs_names * names, size_t * at, uint32_t * len);

uint32_t hs_load_u32(const void * p);   // little-endian, any alignment
uint64_t hs_load_u64(const void * p);
// Grow an array of `elem`-byte elements to hold one more.
int hs_grow(void ** array, size_t * capacity, size_t used, size_t elem, hs_error * err);
// Sort by bytes and report two equal names: returns false and their indices in a, b (a < b).
bool hs_names_sort(struct hs_name_ref * refs, size_t n, uint64_t * a, uint64_t * b);
int64_t hs_names_find(const struct hs_name_ref * refs, size_t n, const char * name);
// A name from a file, fit for a message: at most ~100 characters, everything but printable ASCII as \xNN.
struct hs_quoted { char s[128]; };
struct hs_quoted hs_quote(const char * s, size_t len);
size_t hs_gguf_type_size(hs_gguf_type t);             // bytes of a scalar, 0 for strings, arrays and unknown numbers
const char * hs_gguf_type_name(hs_gguf_type t);       // "u8" ... "string", "array"
