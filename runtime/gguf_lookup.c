// Typed look-ups of GGUF keys, with a message that names file, key, value found and value expected.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gguf_object.h"
#include "status.h"

static const char * label(const hs_gguf * g) {
    return g->shards[0]->source.label;
}

// Index of the key, or -1: then *rc is HS_OK, or HS_E_MODEL for a required one.
static int64_t find(const hs_gguf * g, const char * key, bool required, const char * expected, int * rc, hs_error * err) {
    int64_t i = hs_gguf_find(g, key);
    *rc       = HS_OK;
    if (i < 0 && required) {
        *rc = hs_fail(err, HS_E_MODEL, "%s: key '%s' is missing, expected %s", label(g), key, expected);
    }
    return i;
}

static int wrong_type(const hs_gguf * g, const struct hs_gguf_kv * kv, const char * key, const char * expected, hs_error * err) {
    bool arr = kv->type == HS_GGUF_ARR;
    return hs_fail(err, HS_E_MODEL, "%s: key '%s' has type %s%s%s, expected %s", label(g), key, hs_gguf_type_name(kv->type), arr ? " of " : "",
        arr ? hs_gguf_type_name(kv->arr_type) : "", expected);
}

// Value of an integer or bool of type t at p. *big: a u64 above INT64_MAX (the value is then INT64_MAX). False: not an integer type.
static bool load_integer(hs_gguf_type t, const uint8_t * p, int64_t * v, bool * big) {
    uint64_t u = 0;
    size_t   n = hs_gguf_type_size(t);
    *big = false;
    if (n == 0 || t == HS_GGUF_F32 || t == HS_GGUF_F64) {
        return false;
    }
    memcpy(&u, p, n); // little-endian
    switch (t) {
        case HS_GGUF_I8:  *v = (int8_t) u; break;
        case HS_GGUF_I16: *v = (int16_t) u; break;
        case HS_GGUF_I32: *v = (int32_t) u; break;
        case HS_GGUF_I64: *v = (int64_t) u; break;
        default:
            *big = u > INT64_MAX;
            *v   = *big ? INT64_MAX : (int64_t) u;
    }
    return true;
}

// One integer of key (element `at` of an array, -1: a scalar) in min..max.
static int check_integer(const hs_gguf * g, const char * key, int64_t at, hs_gguf_type t, const uint8_t * p, int64_t min, int64_t max, int64_t * out,
    hs_error * err) {
    bool big = false;
    load_integer(t, p, out, &big);
    if (!big && *out >= min && *out <= max) {
        return HS_OK;
    }
    char where[40] = "", found[32];
    if (at >= 0) {
        snprintf(where, sizeof where, "[%" PRId64 "]", at);
    }
    if (big) {
        snprintf(found, sizeof found, "%" PRIu64, hs_load_u64(p));
    } else {
        snprintf(found, sizeof found, "%" PRId64, *out);
    }
    return hs_fail(err, HS_E_MODEL, "%s: key '%s'%s is %s, expected %" PRId64 " to %" PRId64, label(g), key, where, found, min, max);
}

int hs_gguf_get_i64(const hs_gguf * g, const char * key, bool required, int64_t min, int64_t max, int64_t * out, hs_error * err) {
    int     rc = HS_OK;
    int64_t i  = find(g, key, required, "an integer", &rc, err);
    if (i < 0) {
        return rc;
    }
    const struct hs_gguf_kv * kv = &g->shards[0]->kv[i];
    int64_t v   = 0;
    bool    big = false;
    const uint8_t * p = g->shards[0]->source.meta + kv->raw;
    if (kv->type == HS_GGUF_BOOL || kv->type == HS_GGUF_ARR || !load_integer(kv->type, p, &v, &big)) {
        return wrong_type(g, kv, key, "an integer", err);
    }
    HS_TRY(check_integer(g, key, -1, kv->type, p, min, max, &v, err));
    *out = v;
    return HS_OK;
}

int hs_gguf_get_i32(const hs_gguf * g, const char * key, bool required, int32_t min, int32_t max, int32_t * out, hs_error * err) {
    int64_t v = 0;
    if (!required && hs_gguf_find(g, key) < 0) {
        return HS_OK;
    }
    HS_TRY(hs_gguf_get_i64(g, key, required, min, max, &v, err));
    *out = (int32_t) v;
    return HS_OK;
}

int hs_gguf_get_f32(const hs_gguf * g, const char * key, bool required, float * out, hs_error * err) {
    int     rc = HS_OK;
    int64_t i  = find(g, key, required, "a number of type f32 or f64", &rc, err);
    if (i < 0) {
        return rc;
    }
    const struct hs_gguf_kv * kv = &g->shards[0]->kv[i];
    const uint8_t * p = g->shards[0]->source.meta + kv->raw;
    double v = 0;
    if (kv->type == HS_GGUF_F32) {
        float f;
        memcpy(&f, p, sizeof f);
        v = f;
    } else if (kv->type == HS_GGUF_F64) {
        memcpy(&v, p, sizeof v);
    } else {
        return wrong_type(g, kv, key, "f32 or f64", err);
    }
    if (!isfinite(v) || fabs(v) > 3.4028234663852886e38) { // FLT_MAX: the conversion below is defined
        return hs_fail(err, HS_E_MODEL, "%s: key '%s' is %g, expected a finite f32", label(g), key, v);
    }
    *out = (float) v;
    return HS_OK;
}

int hs_gguf_get_bool(const hs_gguf * g, const char * key, bool required, bool * out, hs_error * err) {
    int     rc = HS_OK;
    int64_t i  = find(g, key, required, "a bool", &rc, err);
    if (i < 0) {
        return rc;
    }
    const struct hs_gguf_kv * kv = &g->shards[0]->kv[i];
    if (kv->type != HS_GGUF_BOOL) {
        return wrong_type(g, kv, key, "bool", err);
    }
    *out = g->shards[0]->source.meta[kv->raw] != 0;
    return HS_OK;
}

int hs_gguf_get_str(const hs_gguf * g, const char * key, bool required, const char ** out, size_t * len, hs_error * err) {
    int     rc = HS_OK;
    int64_t i  = find(g, key, required, "a string", &rc, err);
    if (i < 0) {
        return rc;
    }
    const struct hs_gguf_kv * kv = &g->shards[0]->kv[i];
    if (kv->type != HS_GGUF_STR) {
        return wrong_type(g, kv, key, "string", err);
    }
    *out = (const char *) g->shards[0]->source.meta + kv->raw;
    *len = (size_t) kv->raw_size;
    return HS_OK;
}

int hs_gguf_get_i32_arr(const hs_gguf * g, const char * key, bool required, int64_t n, int32_t min, int32_t max, int32_t * out, int64_t * n_out,
    hs_error * err) {
    int     rc = HS_OK;
    int64_t i  = find(g, key, required, "an integer or an array of integers", &rc, err);
    if (i < 0) {
        return rc;
    }
    const struct hs_gguf_kv * kv  = &g->shards[0]->kv[i];
    const uint8_t *           p   = g->shards[0]->source.meta + kv->raw;
    bool                      arr = kv->type == HS_GGUF_ARR, big = false;
    hs_gguf_type              t   = arr ? kv->arr_type : kv->type;
    size_t                    step = hs_gguf_type_size(t);
    int64_t                   v = 0;
    if (step == 0 || t == HS_GGUF_F32 || t == HS_GGUF_F64) {
        return wrong_type(g, kv, key, "an integer or an array of integers", err);
    }
    int64_t limit = n < 0 ? -n : n, len = arr ? (int64_t) kv->arr_len : n < 0 ? 1 : n;
    if (len > limit || (n >= 0 && len != n)) {
        return hs_fail(err, HS_E_MODEL, "%s: key '%s' has %" PRId64 " elements, expected %s%" PRId64, label(g), key, len, n < 0 ? "at most " : "", limit);
    }
    for (int64_t e = 0; e < len; e++) { // all are checked before any is written
        HS_TRY(check_integer(g, key, arr ? e : -1, t, arr ? p + (size_t) e * step : p, min, max, &v, err));
    }
    for (int64_t e = 0; e < len; e++) {
        load_integer(t, arr ? p + (size_t) e * step : p, &v, &big);
        out[e] = (int32_t) v;
    }
    if (n_out) {
        *n_out = len;
    }
    return HS_OK;
}
