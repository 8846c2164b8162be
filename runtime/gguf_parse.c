// Header and key/value pairs of one GGUF v3 file. Layout: ggml's include/gguf.h (facts only). Every count and length is compared with what is
// left of the file before anything is allocated or read for it.
#include "gguf_parse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

#define KEY_MAX          65535u
#define STRING_MAX       (1ull << 30) // as in ggml
#define ARRAY_MAX        (1ull << 30)
#define KV_BYTES_MIN     14u          // u64 length, 1 byte, u32 type, 1 byte
#define TENSOR_BYTES_MIN 33u          // u64 length, 1 byte, u32 n_dims, 1 dim, u32 type, u64 offset
#define ALIGNMENT_MIN    8u           // the GGUF specification asks for a multiple of 8

void hs_gguf_shard_free(struct hs_gguf_shard * s) {
    hs_source_close(&s->source);
    free(s->kv);
    free(s->kv_sorted);
    free(s->tensors);
    free(s->keys.s);
    free(s->tensor_names.s);
    memset(s, 0, sizeof *s);
    s->source.fd = -1;
}

int64_t hs_gguf_shard_find(const struct hs_gguf_shard * s, const char * key) {
    return hs_names_find(s->kv_sorted, s->n_kv, key);
}

static int parse_header(struct hs_cursor * c, uint64_t * n_tensors, uint64_t * n_kv) {
    const char * label = c->shard->source.label;
    if (c->shard->source.size == 0) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: the file is empty, expected a GGUF file", label);
    }
    HS_TRY(hs_cursor_take(c, 4, "magic"));
    if (memcmp(c->shard->source.meta, "GGUF", 4) != 0) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: magic at offset 0 is '%s', expected 'GGUF'", label, hs_quote((const char *) c->shard->source.meta, 4).s);
    }
    uint32_t version = 0;
    HS_TRY(hs_cursor_u32(c, "version", &version));
    if (version != 3) {
        bool swapped = (version & 0xFFFF) == 0 && version != 0;
        return hs_fail(c->err, HS_E_FORMAT, "%s: GGUF version at offset 4 is %" PRIu32 "%s, expected 3", label, version,
            swapped ? " (a big-endian file)" : version == 1 || version == 2 ? " (an old file: convert the model again)" : "");
    }
    HS_TRY(hs_cursor_u64(c, "tensor count", n_tensors));
    HS_TRY(hs_cursor_u64(c, "key count", n_kv));
    uint64_t left = hs_cursor_left(c);
    if (*n_tensors > left / TENSOR_BYTES_MIN) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: tensor count at offset 8 is %" PRIu64 ", expected at most %" PRIu64 " in a file of %" PRIu64 " bytes", label,
            *n_tensors, left / TENSOR_BYTES_MIN, c->shard->source.size);
    }
    if (*n_kv > left / KV_BYTES_MIN) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: key count at offset 16 is %" PRIu64 ", expected at most %" PRIu64 " in a file of %" PRIu64 " bytes", label,
            *n_kv, left / KV_BYTES_MIN, c->shard->source.size);
    }
    return HS_OK;
}

// The rest of a message about one key.
static int bad_kv(const struct hs_cursor * c, const struct hs_gguf_kv * kv, const char * what, uint64_t found, const char * expected) {
    const struct hs_gguf_shard * s = c->shard;
    return hs_fail(c->err, HS_E_FORMAT, "%s: key '%s' at offset %" PRIu64 ": %s %" PRIu64 ", expected %s", s->source.label,
        hs_quote(s->keys.s + kv->key, kv->key_len).s, kv->offset, what, found, expected);
}

static int parse_string(struct hs_cursor * c, const struct hs_gguf_kv * kv, bool skip_length, uint64_t * start) {
    uint64_t n = 0;
    *start = c->pos;
    HS_TRY(hs_cursor_u64(c, "string length", &n));
    if (n > STRING_MAX) {
        return bad_kv(c, kv, "string length", n, "at most 2^30");
    }
    if (n > hs_cursor_left(c)) {
        return bad_kv(c, kv, "string length", n, "no more than the rest of the file");
    }
    if (skip_length) {
        *start = c->pos;
    }
    return hs_cursor_take(c, n, "string");
}

static int check_bools(struct hs_cursor * c, const struct hs_gguf_kv * kv) {
    const uint8_t * p = c->shard->source.meta + kv->raw;
    for (uint64_t i = 0; i < kv->raw_size; i++) {
        if (p[i] > 1) {
            return bad_kv(c, kv, "bool byte", p[i], "0 or 1");
        }
    }
    return HS_OK;
}

static int parse_array(struct hs_cursor * c, struct hs_gguf_kv * kv) {
    uint32_t type = 0;
    HS_TRY(hs_cursor_u32(c, "array element type", &type));
    HS_TRY(hs_cursor_u64(c, "array length", &kv->arr_len));
    if (type == HS_GGUF_ARR) {
        return bad_kv(c, kv, "array element type", type, "a scalar or string type (arrays of arrays are not supported)");
    }
    if (type > HS_GGUF_F64) {
        return bad_kv(c, kv, "array element type", type, "0 to 12");
    }
    kv->arr_type = (hs_gguf_type) type;
    size_t size  = kv->arr_type == HS_GGUF_STR ? sizeof(uint64_t) : hs_gguf_type_size(kv->arr_type); // the least an element takes
    if (kv->arr_len > ARRAY_MAX) {
        return bad_kv(c, kv, "array length", kv->arr_len, "at most 2^30");
    }
    if (kv->arr_len > hs_cursor_left(c) / size) {
        return bad_kv(c, kv, "array length", kv->arr_len, "no more elements than the rest of the file can hold");
    }
    kv->raw = c->pos;
    if (kv->arr_type == HS_GGUF_STR) {
        for (uint64_t i = 0, start; i < kv->arr_len; i++) {
            HS_TRY(parse_string(c, kv, false, &start));
        }
    } else {
        HS_TRY(hs_cursor_take(c, kv->arr_len * size, "array"));
    }
    kv->raw_size = c->pos - kv->raw;
    return kv->arr_type == HS_GGUF_BOOL ? check_bools(c, kv) : HS_OK;
}

static int parse_kv(struct hs_cursor * c, uint64_t index) {
    struct hs_gguf_shard * s = c->shard;
    HS_TRY(hs_grow((void **) &s->kv, &s->kv_capacity, s->n_kv, sizeof *s->kv, c->err));
    struct hs_gguf_kv * kv = &s->kv[s->n_kv];
    memset(kv, 0, sizeof *kv);
    kv->offset = c->pos;
    HS_TRY(hs_cursor_name(c, "key", index, KEY_MAX, &s->keys, &kv->key, &kv->key_len));
    uint32_t type = 0;
    HS_TRY(hs_cursor_u32(c, "value type", &type));
    if (type > HS_GGUF_F64) {
        return bad_kv(c, kv, "value type", type, "0 to 12");
    }
    kv->type = (hs_gguf_type) type;
    if (kv->type == HS_GGUF_ARR) {
        HS_TRY(parse_array(c, kv));
    } else if (kv->type == HS_GGUF_STR) {
        HS_TRY(parse_string(c, kv, true, &kv->raw));
        kv->raw_size = c->pos - kv->raw;
    } else {
        kv->raw      = c->pos;
        kv->raw_size = hs_gguf_type_size(kv->type);
        if (kv->raw_size > hs_cursor_left(c)) {
            return bad_kv(c, kv, "value bytes left in the file are", hs_cursor_left(c), hs_gguf_type_name(kv->type));
        }
        HS_TRY(hs_cursor_take(c, kv->raw_size, "value"));
        if (kv->type == HS_GGUF_BOOL) {
            HS_TRY(check_bools(c, kv));
        }
    }
    s->n_kv++;
    return HS_OK;
}

static int index_keys(struct hs_gguf_shard * s, hs_error * err) {
    s->kv_sorted = calloc(s->n_kv ? s->n_kv : 1, sizeof *s->kv_sorted);
    if (!s->kv_sorted) {
        return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate an index of %zu keys", s->source.label, s->n_kv);
    }
    for (size_t i = 0; i < s->n_kv; i++) {
        s->kv_sorted[i] = (struct hs_name_ref) {s->keys.s + s->kv[i].key, s->kv[i].key_len, i};
    }
    uint64_t a = 0, b = 0;
    if (!hs_names_sort(s->kv_sorted, s->n_kv, &a, &b)) {
        const struct hs_gguf_kv * kv = &s->kv[b];
        return hs_fail(err, HS_E_FORMAT, "%s: key '%s' at offset %" PRIu64 " repeats the one at offset %" PRIu64 ", expected unique keys", s->source.label,
            hs_quote(s->keys.s + kv->key, kv->key_len).s, kv->offset, s->kv[a].offset);
    }
    return HS_OK;
}

static int read_alignment(struct hs_gguf_shard * s, hs_error * err) {
    s->alignment = 32;
    int64_t i    = hs_gguf_shard_find(s, "general.alignment");
    if (i < 0) {
        return HS_OK;
    }
    if (s->kv[i].type != HS_GGUF_U32) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'general.alignment' has type %s, expected u32", s->source.label, hs_gguf_type_name(s->kv[i].type));
    }
    uint32_t a = hs_load_u32(s->source.meta + s->kv[i].raw);
    if (a < ALIGNMENT_MIN || (a & (a - 1)) != 0) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'general.alignment' is %" PRIu32 ", expected a power of two, %u or more", s->source.label, a, ALIGNMENT_MIN);
    }
    s->alignment = a;
    return HS_OK;
}

// One of the split.* keys: an integer of any type in min..max, `absent` when it is not there.
static int read_split_key(const struct hs_gguf_shard * s, const char * key, int32_t absent, int32_t max, int32_t * out, hs_error * err) {
    *out      = absent;
    int64_t i = hs_gguf_shard_find(s, key);
    if (i < 0) {
        return HS_OK;
    }
    hs_gguf_type t = s->kv[i].type;
    if (t == HS_GGUF_F32 || t == HS_GGUF_F64 || t == HS_GGUF_BOOL || t == HS_GGUF_STR || t == HS_GGUF_ARR) {
        return hs_fail(err, HS_E_FORMAT, "%s: key '%s' has type %s, expected an integer", s->source.label, key, hs_gguf_type_name(t));
    }
    uint64_t v = 0; // little-endian: the bytes of any width; a negative number becomes too large or is caught by its sign bit
    memcpy(&v, s->source.meta + s->kv[i].raw, (size_t) s->kv[i].raw_size);
    bool negative = (t == HS_GGUF_I8 && v > INT8_MAX) || (t == HS_GGUF_I16 && v > INT16_MAX);
    if (negative || v > (uint64_t) max) {
        return hs_fail(err, HS_E_FORMAT, "%s: key '%s' is %" PRIu64 "%s, expected 0 to %" PRId32, s->source.label, key, v, negative ? " (negative)" : "", max);
    }
    *out = (int32_t) v;
    return HS_OK;
}

int hs_gguf_shard_parse(struct hs_gguf_shard * s, hs_error * err) {
    struct hs_cursor c = {s, 0, err};
    uint64_t         n_tensors = 0, n_kv = 0;
    HS_TRY(parse_header(&c, &n_tensors, &n_kv));
    for (uint64_t i = 0; i < n_kv; i++) {
        HS_TRY(parse_kv(&c, i));
    }
    HS_TRY(index_keys(s, err));
    HS_TRY(read_alignment(s, err));
    HS_TRY(read_split_key(s, "split.no", 0, HS_SPLIT_MAX - 1, &s->split_no, err));
    HS_TRY(read_split_key(s, "split.count", 0, HS_SPLIT_MAX, &s->split_count, err));
    HS_TRY(read_split_key(s, "split.tensors.count", -1, INT32_MAX, &s->split_tensors, err));
    HS_TRY(hs_gguf_shard_parse_tensors(s, c.pos, n_tensors, err));
    hs_source_trim(&s->source, s->meta_used);
    return HS_OK;
}
