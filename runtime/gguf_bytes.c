// What the parser's files share: the checked reading position, names and their index, type sizes.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_parse.h"
#include "status.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF files and ggml's tensor data are little-endian: big-endian machines are not supported"
#endif

uint32_t hs_load_u32(const void * p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

uint64_t hs_load_u64(const void * p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

uint64_t hs_cursor_left(const struct hs_cursor * c) {
    return c->shard->source.size - c->pos; // pos never passes size
}

int hs_cursor_take(struct hs_cursor * c, uint64_t n, const char * what) {
    struct hs_source * src = &c->shard->source;
    if (n > hs_cursor_left(c)) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: %s at offset %" PRIu64 " needs %" PRIu64 " bytes, found %" PRIu64 " to the end of the file", src->label,
            what, c->pos, n, hs_cursor_left(c));
    }
    HS_TRY(hs_source_need(src, c->pos + n, c->err));
    c->pos += n;
    return HS_OK;
}

int hs_cursor_u32(struct hs_cursor * c, const char * what, uint32_t * out) {
    HS_TRY(hs_cursor_take(c, sizeof *out, what));
    *out = hs_load_u32(c->shard->source.meta + c->pos - sizeof *out);
    return HS_OK;
}

int hs_cursor_u64(struct hs_cursor * c, const char * what, uint64_t * out) {
    HS_TRY(hs_cursor_take(c, sizeof *out, what));
    *out = hs_load_u64(c->shard->source.meta + c->pos - sizeof *out);
    return HS_OK;
}

// Length of the UTF-8 sequence at s (at most n bytes), 0 when it is malformed, overlong, a surrogate or past U+10FFFF (RFC 3629).
static size_t utf8_length(const uint8_t * s, size_t n) {
    if (s[0] < 0x80) {
        return 1;
    }
    size_t  len  = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    uint8_t low  = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    uint8_t high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[0] < 0xC2 || s[0] > 0xF4 || len > n || s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return len;
}

int hs_grow(void ** array, size_t * capacity, size_t used, size_t elem, hs_error * err) {
    if (used < *capacity) {
        return HS_OK;
    }
    size_t n = *capacity ? *capacity * 2 : 64;
    void * p = n > SIZE_MAX / 2 / elem ? NULL : realloc(*array, n * elem);
    if (!p) {
        return hs_fail(err, HS_E_MEMORY, "cannot allocate a table of %zu x %zu bytes", n, elem);
    }
    *array    = p;
    *capacity = n;
    return HS_OK;
}

int hs_cursor_name(struct hs_cursor * c, const char * what, uint64_t index, uint64_t max_len, struct hs_names * names, size_t * at, uint32_t * len) {
    struct hs_gguf_shard * s     = c->shard;
    const char *           label = s->source.label;
    uint64_t               start = c->pos, n = 0;
    char                   part[48];
    snprintf(part, sizeof part, "%s %" PRIu64, what, index);
    HS_TRY(hs_cursor_u64(c, part, &n));
    if (n == 0 || n > max_len) {
        return hs_fail(c->err, HS_E_FORMAT, "%s: %s at offset %" PRIu64 ": length %" PRIu64 ", expected 1 to %" PRIu64, label, part, start, n, max_len);
    }
    HS_TRY(hs_cursor_take(c, n, part));
    const uint8_t * bytes = s->source.meta + c->pos - n;
    for (size_t i = 0, step; i < n; i += step) {
        step = bytes[i] ? utf8_length(bytes + i, (size_t) n - i) : 0;
        if (step == 0) {
            return hs_fail(c->err, HS_E_FORMAT, "%s: %s at offset %" PRIu64 ": '%s' has byte 0x%02x at %zu, expected UTF-8 without NUL", label, part, start,
                hs_quote((const char *) bytes, (size_t) n).s, bytes[i], i);
        }
    }
    while (names->capacity - names->size < n + 1) {
        HS_TRY(hs_grow((void **) &names->s, &names->capacity, names->capacity, 1, c->err));
    }
    *at  = names->size;
    *len = (uint32_t) n;
    memcpy(names->s + *at, bytes, (size_t) n);
    names->s[*at + n] = '\0';
    names->size += (size_t) n + 1;
    return HS_OK;
}

static int compare_bytes(const char * a, size_t na, const char * b, size_t nb) {
    int c = memcmp(a, b, na < nb ? na : nb);
    return c ? c : (na > nb) - (na < nb);
}

static int compare_refs(const void * pa, const void * pb) {
    const struct hs_name_ref * a = pa, * b = pb;
    int c = compare_bytes(a->s, a->len, b->s, b->len);
    return c ? c : (a->index > b->index) - (a->index < b->index);
}

// A sorted index rather than a hash table: no file can be made that slows it down.
bool hs_names_sort(struct hs_name_ref * refs, size_t n, uint64_t * a, uint64_t * b) {
    if (n > 1) {
        qsort(refs, n, sizeof *refs, compare_refs);
    }
    for (size_t i = 1; i < n; i++) {
        if (compare_bytes(refs[i - 1].s, refs[i - 1].len, refs[i].s, refs[i].len) == 0) {
            *a = refs[i - 1].index;
            *b = refs[i].index;
            return false;
        }
    }
    return true;
}

int64_t hs_names_find(const struct hs_name_ref * refs, size_t n, const char * name) {
    size_t len = strlen(name), low = 0, high = n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int    c   = compare_bytes(refs[mid].s, refs[mid].len, name, len);
        if (c == 0) {
            return (int64_t) refs[mid].index;
        }
        if (c < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return -1;
}

struct hs_quoted hs_quote(const char * s, size_t len) {
    struct hs_quoted q;
    size_t at = 0, i = 0;
    for (; i < len && at < sizeof q.s - 8; i++) {
        unsigned char ch = (unsigned char) s[i];
        if (ch >= 0x20 && ch < 0x7F) {
            q.s[at++] = (char) ch;
        } else {
            at += (size_t) snprintf(q.s + at, sizeof q.s - at, "\\x%02x", ch);
        }
    }
    snprintf(q.s + at, sizeof q.s - at, "%s", i < len ? "..." : "");
    return q;
}

size_t hs_gguf_type_size(hs_gguf_type t) {
    switch (t) {
        case HS_GGUF_U8: case HS_GGUF_I8: case HS_GGUF_BOOL: return 1;
        case HS_GGUF_U16: case HS_GGUF_I16: return 2;
        case HS_GGUF_U32: case HS_GGUF_I32: case HS_GGUF_F32: return 4;
        case HS_GGUF_U64: case HS_GGUF_I64: case HS_GGUF_F64: return 8;
        case HS_GGUF_STR: case HS_GGUF_ARR: break;
    }
    return 0;
}

const char * hs_gguf_type_name(hs_gguf_type t) {
    static const char * const names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return (unsigned) t < sizeof names / sizeof *names ? names[t] : "unknown";
}
