// The tensor table of one GGUF file: names, shapes, types, and where the data lies.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_parse.h"
#include "status.h"

static struct hs_quoted tensor_name(const struct hs_gguf_tensor * t) {
    return hs_quote(t->name, strlen(t->name));
}

// Shape and type -> size in bytes, every product checked. ne[0] is a multiple of the block.
static int set_size(const char * label, struct hs_gguf_tensor * t, int64_t block, size_t block_bytes, hs_error * err) {
    int64_t n = t->ne[0] / block, elements = t->ne[0], bytes = 0;
    bool    wraps = false;
    for (int d = 1; d < 4; d++) {
        wraps |= __builtin_mul_overflow(n, t->ne[d], &n);
        wraps |= __builtin_mul_overflow(elements, t->ne[d], &elements);
    }
    wraps |= __builtin_mul_overflow(n, (int64_t) block_bytes, &bytes);
    if (wraps) {
        return hs_fail(err, HS_E_FORMAT, "%s: tensor '%s': shape [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "], expected less than 2^63 elements and bytes",
            label, tensor_name(t).s, t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    }
    t->size = (uint64_t) bytes;
    return HS_OK;
}

static int parse_tensor(struct hs_cursor * c, uint64_t index) {
    struct hs_gguf_shard * s     = c->shard;
    const char *           label = s->source.label;
    HS_TRY(hs_grow((void **) &s->tensors, &s->tensor_capacity, s->n_tensors, sizeof *s->tensors, c->err));
    struct hs_gguf_tensor * t = &s->tensors[s->n_tensors];
    memset(t, 0, sizeof *t);
    size_t   at     = 0;
    uint32_t len    = 0, n_dims = 0, type = 0;
    uint64_t offset = c->pos;
    HS_TRY(hs_cursor_name(c, "name of tensor", index, GGML_MAX_NAME - 1, &s->tensor_names, &at, &len));
    t->name = s->tensor_names.s + at; // good until the next name is added; set again when the table is complete
    HS_TRY(hs_cursor_u32(c, "number of dimensions", &n_dims));
    if (n_dims < 1 || n_dims > 4) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: tensor '%s' at offset %" PRIu64 ": %" PRIu32 " dimensions, expected 1 to 4", label, tensor_name(t).s, offset, n_dims);
    }
    t->n_dims = (int32_t) n_dims;
    for (uint32_t d = 0; d < 4; d++) {
        uint64_t ne = 1;
        if (d < n_dims) {
            HS_TRY(hs_cursor_u64(c, "dimension", &ne));
        }
        if (ne < 1 || ne > INT64_MAX) {
            return hs_fail(c->err, HS_E_FORMAT, "%s: tensor '%s' at offset %" PRIu64 ": dimension %" PRIu32 " is %" PRId64 ", expected 1 or more", label,
                tensor_name(t).s, offset, d, (int64_t) ne);
        }
        t->ne[d] = (int64_t) ne;
    }
    HS_TRY(hs_cursor_u32(c, "tensor type", &type));
    int64_t block = type < GGML_TYPE_COUNT ? ggml_blck_size((enum ggml_type) type) : 0;
    size_t  bytes = type < GGML_TYPE_COUNT ? ggml_type_size((enum ggml_type) type) : 0;
    if (block < 1 || bytes < 1) { // ggml's table has zeros for the numbers of removed types
        return hs_fail(c->err, HS_E_FORMAT, "%s: tensor '%s' at offset %" PRIu64 ": type %" PRIu32 " is %s, expected one of ggml's types (0 to %d)", label,
            tensor_name(t).s, offset, type, type < GGML_TYPE_COUNT ? "no longer supported" : "unknown", GGML_TYPE_COUNT - 1);
    }
    t->type = (enum ggml_type) type;
    if (t->ne[0] % block != 0) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: tensor '%s' at offset %" PRIu64 ": rows of %" PRId64 " elements, expected a multiple of %" PRId64 " (type %s)",
            label, tensor_name(t).s, offset, t->ne[0], block, ggml_type_name(t->type));
    }
    HS_TRY(set_size(label, t, block, bytes, c->err));
    HS_TRY(hs_cursor_u64(c, "tensor offset", &t->offset));
    s->n_tensors++;
    return HS_OK;
}

static int compare_offsets(const void * pa, const void * pb) {
    const struct hs_gguf_tensor * a = *(struct hs_gguf_tensor * const *) pa, * b = *(struct hs_gguf_tensor * const *) pb;
    return a->offset != b->offset ? (a->offset > b->offset) - (a->offset < b->offset) : (a > b) - (a < b);
}

static int check_overlaps(const struct hs_gguf_shard * s, hs_error * err) {
    struct hs_gguf_tensor ** order = calloc(s->n_tensors ? s->n_tensors : 1, sizeof *order);
    if (!order) {
        return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate an index of %zu tensors", s->source.label, s->n_tensors);
    }
    for (size_t i = 0; i < s->n_tensors; i++) {
        order[i] = &s->tensors[i];
    }
    if (s->n_tensors > 1) {
        qsort(order, s->n_tensors, sizeof *order, compare_offsets);
    }
    int rc = HS_OK;
    for (size_t i = 1; i < s->n_tensors && rc == HS_OK; i++) {
        const struct hs_gguf_tensor * a = order[i - 1], * b = order[i];
        if (b->offset < a->offset + a->size) {
            rc = hs_fail(err, HS_E_FORMAT, "%s: tensor '%s' starts at offset %" PRIu64 " inside tensor '%s', expected %" PRIu64 " or more", s->source.label,
                tensor_name(b).s, b->offset, tensor_name(a).s, a->offset + a->size);
        }
    }
    free(order);
    return rc;
}

// Offsets are relative to the data section in the file; turn them into file offsets.
static int place_data(struct hs_gguf_shard * s, hs_error * err) {
    const char * label = s->source.label;
    uint64_t     size = s->source.size, pad = s->alignment - 1;
    if (s->n_tensors == 0) {
        return HS_OK; // no data section then (the first file of a split model may be metadata only)
    }
    uint64_t data = ((uint64_t) s->meta_used + pad) & ~pad; // no wrap: alignment < 2^32, file size < 2^63
    for (size_t i = 0; i < s->n_tensors; i++) {
        struct hs_gguf_tensor * t = &s->tensors[i];
        if (t->offset % s->alignment != 0) {
            return hs_fail(err, HS_E_FORMAT, "%s: tensor '%s': data offset %" PRIu64 ", expected a multiple of the alignment %" PRIu32, label, tensor_name(t).s,
                t->offset, s->alignment);
        }
        if (data > size || t->offset > size - data || t->size > size - data - t->offset) {
            return hs_fail(err, HS_E_FORMAT, "%s: tensor '%s': %" PRIu64 " bytes at offset %" PRIu64 " of the data section, which starts at %" PRIu64
                ": expected an end within the file's %" PRIu64 " bytes", label, tensor_name(t).s, t->size, t->offset, data, size);
        }
        t->offset += data;
    }
    return check_overlaps(s, err);
}

int hs_gguf_shard_parse_tensors(struct hs_gguf_shard * s, uint64_t pos, uint64_t n, hs_error * err) {
    struct hs_cursor c = {s, pos, err};
    for (uint64_t i = 0; i < n; i++) {
        HS_TRY(parse_tensor(&c, i));
    }
    s->meta_used = (size_t) c.pos;
    const char * name = s->tensor_names.s; // it no longer moves
    for (size_t i = 0; i < s->n_tensors; i++) {
        s->tensors[i].name = name;
        name += strlen(name) + 1;
    }
    return place_data(s, err);
}
