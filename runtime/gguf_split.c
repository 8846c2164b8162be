// Split models: NAME-00001-of-00003.gguf and so on. Any of the files names them all; they must belong together.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_object.h"
#include "status.h"

#define SUFFIX_LENGTH 20u // "-00001-of-00003.gguf"

// The path of file `no` of the model that s belongs to: s's own path with another number (the same length, so no limit is passed).
static char * shard_path(const struct hs_gguf_shard * s, int32_t no) {
    size_t len  = strlen(s->source.path);
    char * path = malloc(len + 1);
    if (path) {
        memcpy(path, s->source.path, len + 1);
        char suffix[32];
        snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", (int) no + 1, (int) s->split_count);
        memcpy(path + len - SUFFIX_LENGTH, suffix, SUFFIX_LENGTH);
    }
    return path;
}

static int check_name(const struct hs_gguf_shard * s, hs_error * err) {
    if (s->split_no >= s->split_count) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'split.no' is %" PRId32 ", expected 0 to split.count - 1 = %" PRId32, s->source.label, s->split_no,
            s->split_count - 1);
    }
    char suffix[32];
    snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", (int) s->split_no + 1, (int) s->split_count);
    size_t len = strlen(s->source.path);
    if (len < SUFFIX_LENGTH || strcmp(s->source.path + len - SUFFIX_LENGTH, suffix) != 0) {
        return hs_fail(err, HS_E_FORMAT, "%s: keys 'split.no' %" PRId32 " and 'split.count' %" PRId32 " expect a file name that ends in %s", s->source.label,
            s->split_no, s->split_count, suffix);
    }
    return HS_OK;
}

static int check_split_keys(const struct hs_gguf_shard * s, const struct hs_gguf_shard * ref, int32_t no, hs_error * err) {
    if (s->split_no != no) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'split.no' is %" PRId32 ", expected %" PRId32 " in the file of this name", s->source.label, s->split_no, no);
    }
    if (s->split_count != ref->split_count) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'split.count' is %" PRId32 ", expected %" PRId32 " as in %s", s->source.label, s->split_count, ref->split_count,
            ref->source.label);
    }
    if (s->split_tensors != ref->split_tensors) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'split.tensors.count' is %" PRId32 ", expected %" PRId32 " as in %s (-1: absent)", s->source.label,
            s->split_tensors, ref->split_tensors, ref->source.label);
    }
    return HS_OK;
}

// Keys that stand in two files must be equal there: files of two models rarely agree in general.name, general.architecture ...
static int check_common_keys(const struct hs_gguf_shard * s, const struct hs_gguf_shard * first, hs_error * err) {
    for (size_t i = 0; i < s->n_kv; i++) {
        const struct hs_gguf_kv * kv  = &s->kv[i];
        const char *              key = s->keys.s + kv->key;
        int64_t                   j   = hs_gguf_shard_find(first, key);
        if (j < 0 || strcmp(key, "split.no") == 0 || strcmp(key, "general.alignment") == 0) { // the alignment is each file's own
            continue;
        }
        const struct hs_gguf_kv * other = &first->kv[j];
        bool same = kv->type == other->type && kv->raw_size == other->raw_size && (kv->type != HS_GGUF_ARR || kv->arr_type == other->arr_type) &&
                    memcmp(s->source.meta + kv->raw, first->source.meta + other->raw, (size_t) kv->raw_size) == 0;
        if (!same) {
            return hs_fail(err, HS_E_FORMAT, "%s: key '%s' at offset %" PRIu64 " differs from the one in %s at offset %" PRIu64
                ", expected equal values in the files of one model", s->source.label, hs_quote(key, kv->key_len).s, kv->offset, first->source.label, other->offset);
        }
    }
    return HS_OK;
}

static int open_shard(hs_gguf * g, const struct hs_gguf_shard * ref, int32_t no, bool use_mmap, hs_error * err) {
    struct hs_gguf_shard * s    = calloc(1, sizeof *s);
    char *                 path = shard_path(ref, no);
    if (!s || !path) {
        free(s);
        free(path);
        return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate file %" PRId32 " of the split model", ref->source.label, no + 1);
    }
    int rc = hs_source_open(&s->source, path, use_mmap, err);
    free(path);
    g->shards[no] = s;
    if (rc == HS_E_IO && err) {
        return hs_fail(err, rc, "%s (file %" PRId32 " of %" PRId32 " of a split model)", err->message, no + 1, ref->split_count);
    }
    HS_TRY(rc);
    HS_TRY(hs_gguf_shard_parse(s, err));
    return check_split_keys(s, ref, no, err);
}

int hs_gguf_join(hs_gguf * g, struct hs_gguf_shard * first, bool use_mmap, hs_error * err) {
    bool    split = first->split_count > 1;
    int32_t count = split ? first->split_count : 1;
    int     rc    = HS_OK;
    if (!split && first->split_no > 0) {
        rc = hs_fail(err, HS_E_FORMAT, "%s: key 'split.no' is %" PRId32 ", expected 0 when split.count is %" PRId32, first->source.label, first->split_no,
            first->split_count);
    } else if (split && first->source.memory) {
        rc = hs_fail(err, HS_E_FORMAT, "%s: key 'split.count' is %" PRId32 ", expected 1 in a model given as memory", first->source.label, count);
    } else if (split) {
        rc = check_name(first, err);
    }
    g->shards = rc == HS_OK ? calloc((size_t) count, sizeof *g->shards) : NULL;
    if (!g->shards) {
        rc = rc != HS_OK ? rc : hs_fail(err, HS_E_MEMORY, "%s: cannot allocate a table of %" PRId32 " files", first->source.label, count);
        hs_gguf_shard_free(first);
        free(first);
        return rc;
    }
    int32_t own       = split ? first->split_no : 0;
    g->n_shards       = count;
    g->shards[own]    = first; // freed with g from here on
    uint64_t tensors  = first->n_tensors;
    for (int32_t no = 0; no < count; no++) {
        if (no != own) {
            HS_TRY(open_shard(g, first, no, use_mmap, err));
            tensors += g->shards[no]->n_tensors;
        }
        if (no > 0) {
            HS_TRY(check_common_keys(g->shards[no], g->shards[0], err));
        }
    }
    if (split && first->split_tensors >= 0 && tensors != (uint64_t) first->split_tensors) {
        return hs_fail(err, HS_E_FORMAT, "%s: key 'split.tensors.count' is %" PRId32 ", found %" PRIu64 " tensors in the %" PRId32 " files, expected as many",
            first->source.label, first->split_tensors, tensors, count);
    }
    return HS_OK;
}
