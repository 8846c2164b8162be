// Inputs are random rows out of a pool, repeated: gigabytes are filled at the speed of memory, every page is memory of its own, and row (head, j)
// holds the same values in pages, in ggml's layout and in rings, so that results can be compared.
// Over 400 lines: inputs of every kind, and the plan of how they repeat on a device, belong to one table of shapes.
#include "op_perf_node.h"

#include "ggml-cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64
#define PAGE 64
#define TOP_K 16
#define WINDOW 128
#define RING_NEW 512 // a session's rings hold the window and a ubatch
#define POOL_ROWS 1021
#define CORE 8         // of a "sparse" selection: blocks that stay for about 128 queries
#define POOL_BLOCKS 32 // and those out of which every query draws the rest

// A device's node stands in its graph many times, so that starting and waiting for a graph does not count, and a decode step's copies read memory
// that is in no cache: as many bytes as COLD_BYTES lie between two reads of the same.
#define COPIES_MAX 256
#define COLD_BYTES 256e6
#define GRAPH_SECONDS 3e-3
#define DEVICE_BYTES_PER_SECOND 3e12 // a guess is enough: how many copies
#define DEVICE_FLOPS_PER_SECOND 3e14
#define TENSORS_A_COPY 16

static const char * const kind_names[HS_PERF_KIND_COUNT] = { "full", "full-noscores", "flash", "sparse", "sparse-random", "select", "window" };

bool hs_perf_parse(const char * text, struct hs_perf_spec * spec) {
    char kind[16], type[8], rest[2];
    *spec = (struct hs_perf_spec) { .kind = HS_PERF_KIND_COUNT, .type = GGML_TYPE_COUNT };
    if (sscanf(text, " %15s %7s %d/%dx%d %d@%d %1s", kind, type, &spec->n_head, &spec->n_head_kv, &spec->d, &spec->n_new, &spec->n_keys, rest) != 7) {
        return false;
    }
    for (int i = 0; i < HS_PERF_KIND_COUNT; i++) {
        spec->kind = strcmp(kind, kind_names[i]) == 0 ? (enum hs_perf_kind) i : spec->kind;
    }
    const enum ggml_type types[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 };
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        spec->type = strcmp(type, ggml_type_name(types[i])) == 0 ? types[i] : spec->type;
    }
    return spec->kind != HS_PERF_KIND_COUNT && spec->type != GGML_TYPE_COUNT && spec->n_head_kv > 0 && spec->n_head > 0 &&
           spec->n_head % spec->n_head_kv == 0 && spec->d > 0 && spec->d <= 256 && spec->d % 32 == 0 && spec->n_new > 0 &&
           spec->n_keys >= spec->n_new && spec->n_keys <= 1 << 24;
}

static uint32_t next(uint64_t * state) { // splitmix64, upper half
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t) ((x ^ (x >> 31)) >> 32);
}

static float normal(uint64_t * state) {
    const double u = (next(state) + 0.5) * 0x1p-32, v = (next(state) + 0.5) * 0x1p-32;
    return (float) (sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

static bool fail(struct hs_perf_node * n, const char * why) {
    snprintf(n->error, sizeof(n->error), "%s", why);
    return false;
}

static bool fill_normal(struct ggml_tensor * t, uint64_t seed) {
    const int64_t count = ggml_nelements(t);
    float * x = malloc((size_t) count * sizeof(*x));
    for (int64_t i = 0; x && i < count; i++) {
        x[i] = normal(&seed);
    }
    if (x) {
        ggml_backend_tensor_set(t, x, 0, ggml_nbytes(t));
    }
    free(x);
    return x != NULL;
}

// The rows that caches are filled with: POOL_ROWS of them and the first PAGE again.
static char * make_pool(enum ggml_type type, int64_t d, uint64_t seed) {
    const size_t row = ggml_row_size(type, d);
    float * x = malloc((size_t) (POOL_ROWS * d) * sizeof(*x));
    char * pool = malloc(row * (POOL_ROWS + PAGE));
    if (x && pool) {
        for (int64_t i = 0; i < POOL_ROWS * d; i++) {
            x[i] = normal(&seed);
        }
        ggml_quantize_chunk(type, x, pool, 0, POOL_ROWS, d, NULL);
        memcpy(pool + row * POOL_ROWS, pool, row * PAGE);
    } else {
        free(pool);
        pool = NULL;
    }
    free(x);
    return pool;
}

// A cache tensor [d, slots, heads, pages or sequences]. Position j of head g is pool row (j + 131 g) % POOL_ROWS and lies in slot j % slots of page
// table[j / slots], of every sequence (table [pages, n_seq]); NULL: the tensor holds one ring, or one row of slots, a sequence. n_keys positions.
static bool fill_cache(struct ggml_tensor * t, uint64_t seed, const int32_t * table, int64_t n_pages, int64_t n_seq, int64_t n_keys) {
    const int64_t d = t->ne[0], slots = t->ne[1];
    const size_t row = ggml_row_size(t->type, d);
    char * pool = make_pool(t->type, d, seed), * page = table ? calloc(1, t->nb[3]) : NULL;
    const bool ok = pool && (page || !table);
    for (int64_t s = 0; ok && s < n_seq; s++) {
        for (int64_t j = !table && n_keys > slots ? n_keys - slots : 0; j < n_keys;) { // a run of positions that are neighbours in memory
            int64_t len = n_keys - j < PAGE ? n_keys - j : PAGE;
            len = slots - j % slots < len ? slots - j % slots : len;
            for (int64_t g = 0; g < t->ne[2]; g++) {
                const char * rows = pool + row * (size_t) ((j + 131 * g) % POOL_ROWS);
                const size_t at = (size_t) g * t->nb[2] + (size_t) (j % slots) * t->nb[1];
                if (page) {
                    memcpy(page + at, rows, row * (size_t) len);
                } else {
                    ggml_backend_tensor_set(t, rows, (size_t) s * t->nb[3] + at, row * (size_t) len);
                }
            }
            if (page) { // in one piece: for a device every call is a transfer
                ggml_backend_tensor_set(t, page, (size_t) table[s * n_pages + j / slots] * t->nb[3], t->nb[3]);
            }
            j += len;
        }
    }
    free(page);
    free(pool);
    return ok;
}

// Pages in random order, as after many sessions.
static bool fill_pages(struct hs_perf_node * n) {
    const int64_t pages = ggml_nelements(n->table), a_seq = n->table->ne[0], n_seq = n->table->ne[1];
    int32_t * table = malloc((size_t) pages * sizeof(*table));
    uint64_t state = 5;
    bool ok = table != NULL;
    for (int64_t i = 0; ok && i < pages; i++) {
        const int64_t at = next(&state) % (uint64_t) (i + 1);
        table[i] = table[at];
        table[at] = (int32_t) i;
    }
    if (ok) {
        ggml_backend_tensor_set(n->table, table, 0, ggml_nbytes(n->table));
        ok = fill_cache(n->k, 1, table, a_seq, n_seq, n->spec.n_keys) && fill_cache(n->v, 2, table, a_seq, n_seq, n->spec.n_keys);
    }
    free(table);
    return ok;
}

static int ascending(const void * a, const void * b) {
    return *(const int32_t *) a - *(const int32_t *) b;
}

static bool has(const int32_t * list, int n, int32_t x) {
    for (int i = 0; i < n; i++) {
        if (list[i] == x) {
            return true;
        }
    }
    return false;
}

// n different numbers of [first, end), in any order.
static void draw(int32_t * list, int n, int32_t first, int32_t end, uint64_t * state) {
    for (int i = 0; i < n; i++) {
        do {
            list[i] = first + (int32_t) (next(state) % (uint32_t) (end - first));
        } while (has(list, i, list[i]));
    }
}

// What the "sparse" selections of a KV head draw from: blocks that nearly every query chooses, and blocks that each query chooses some of.
struct habit { int32_t core[CORE], pool[POOL_BLOCKS]; int n_pool; };

// Put another number into list[at]: from [1, end), not in the list.
static void renew(int32_t * list, int n, int at, int32_t end, uint64_t * state) {
    int32_t fresh;
    do {
        fresh = 1 + (int32_t) (next(state) % (uint32_t) (end - 1));
    } while (has(list, n, fresh));
    list[at] = fresh;
}

// The row of a query whose own block is `last`, of more than TOP_K blocks, in any order. h: zero before the first query.
static void choose(enum hs_perf_kind kind, int last, struct habit * h, uint64_t * state, int32_t * row) {
    const int32_t end = last - 1; // block 0, the one before the last and the last are in every row
    if (kind == HS_PERF_SPARSE_RANDOM) {
        draw(row, TOP_K, 0, last + 1, state);
        return;
    }
    if (h->n_pool == 0) {
        h->n_pool = end - 1 < POOL_BLOCKS ? end - 1 : POOL_BLOCKS;
        draw(h->core, CORE, 1, end, state);
        draw(h->pool, h->n_pool, 1, end, state);
    } else {
        if (next(state) % 16 == 0) {
            renew(h->core, CORE, (int) (next(state) % CORE), end, state);
        }
        if (next(state) % 8 == 0 && h->n_pool < end - 1) {
            renew(h->pool, h->n_pool, (int) (next(state) % (uint32_t) h->n_pool), end, state);
        }
    }
    int n = 0;
    row[n++] = 0;
    row[n++] = last - 1;
    row[n++] = last;
    memcpy(row + n, h->core, sizeof(h->core));
    for (n += CORE; n < TOP_K; n++) {
        do {
            row[n] = h->pool[next(state) % (uint32_t) h->n_pool];
        } while (has(row, n, row[n]));
    }
}

// Rows of sel for every (query, KV head); adds up visible selected keys, and distinct keys a head, both over heads.
static bool fill_selection(struct hs_perf_node * n, struct ggml_tensor * sel, uint64_t seed, double * visible, double * distinct) {
    const struct hs_perf_spec * s = &n->spec;
    const size_t n_blocks = (size_t) (s->n_keys + BLOCK - 1) / BLOCK;
    int32_t * data = malloc(ggml_nbytes(sel));
    char * seen = malloc(n_blocks);
    for (int g = 0; data && seen && g < s->n_head_kv; g++) {
        uint64_t state = seed + (uint64_t) g;
        struct habit habit = { 0 };
        memset(seen, 0, n_blocks);
        for (int t = s->n_keys - s->n_new; t < s->n_keys; t++) {
            const int last = t / BLOCK, count = last + 1 < TOP_K ? last + 1 : TOP_K;
            int32_t * row = data + ((int64_t) (t - s->n_keys + s->n_new) * s->n_head_kv + g) * TOP_K;
            for (int x = 0; x < TOP_K; x++) {
                row[x] = x < count ? x : HS_BLOCK_NONE;
            }
            if (last + 1 > TOP_K) {
                choose(s->kind, last, &habit, &state, row);
            }
            qsort(row, (size_t) count, sizeof(*row), ascending);
            for (int x = 0; x < count; x++) {
                *visible += row[x] == last ? t % BLOCK + 1 : BLOCK;
                *distinct += seen[row[x]] ? 0 : BLOCK;
                seen[row[x]] = 1;
            }
        }
    }
    if (data && seen) {
        ggml_backend_tensor_set(sel, data, 0, ggml_nbytes(sel));
    }
    free(data);
    free(seen);
    return data && seen;
}

static bool fill_positions(struct ggml_tensor * pos_seq, int first, int seq) {
    const int64_t count = pos_seq->ne[0];
    int32_t * p = calloc((size_t) (2 * count), sizeof(*p));
    for (int64_t i = 0; p && i < count; i++) {
        p[i] = first + (int32_t) i;
        p[count + i] = seq;
    }
    if (p) {
        ggml_backend_tensor_set(pos_seq, p, 0, ggml_nbytes(pos_seq));
    }
    free(p);
    return p != NULL;
}

static bool fill_mask(struct ggml_tensor * mask, int64_t first) {
    ggml_fp16_t * m = malloc(ggml_nbytes(mask));
    const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
    for (int64_t i = 0; m && i < mask->ne[1]; i++) {
        for (int64_t j = 0; j < mask->ne[0]; j++) {
            m[i * mask->ne[0] + j] = j <= first + i ? 0 : hidden;
        }
    }
    if (m) {
        ggml_backend_tensor_set(mask, m, 0, ggml_nbytes(mask));
    }
    free(m);
    return m != NULL;
}

// What the copies of a node are given. sets: different pairs of positions (a sequence) and selection, copy c has set c % n_sets.
struct inputs {
    struct ggml_tensor * q, * gates, * ring_k, * ring_v, * scores, * mask, * pos_seq[COPIES_MAX], * sel[COPIES_MAX];
    int n_sets, n_seq;
    bool own_pages;
};

static bool is_sparse(const struct hs_perf_spec * s) {
    return s->kind == HS_PERF_SPARSE || s->kind == HS_PERF_SPARSE_RANDOM;
}

// How many copies, and of how many sequences and selections, for a device. Full attention reads a sequence's cache, sparse attention 16 blocks and
// the ring, a selection scores that were just written.
static void plan_copies(struct hs_perf_node * n, struct inputs * in) {
    const struct hs_perf_spec * s = &n->spec;
    const double head = (double) s->n_head_kv * 2.0 * (double) ggml_row_size(s->type, s->d), cache = head * s->n_keys;
    const double keys = is_sparse(s) ? fmin(s->n_keys, TOP_K * BLOCK) + WINDOW : s->kind == HS_PERF_WINDOW ? WINDOW : s->n_keys;
    const double once = s->kind == HS_PERF_SELECT ? 1e4 : head * keys, flops = 4.0 * s->n_head * s->d * keys * s->n_new;
    const double seconds = fmax(flops / DEVICE_FLOPS_PER_SECOND, once / DEVICE_BYTES_PER_SECOND) + 4e-6;
    const bool rotate = s->n_new == 1 && s->kind != HS_PERF_SELECT;
    in->n_seq = rotate ? (int) fmin(ceil(COLD_BYTES / cache), 64.0) : 1;
    in->n_sets = rotate ? (int) fmin(ceil(COLD_BYTES / once), COPIES_MAX) : 1;
    in->n_sets = is_sparse(s) && in->n_sets > in->n_seq ? in->n_sets : in->n_seq;
    n->copies = (int) fmin(ceil(GRAPH_SECONDS / seconds), COPIES_MAX);
    n->copies = s->n_new > 1 && n->copies > 4 ? 4 : n->copies; // their results take memory
    n->copies = n->copies > in->n_sets ? n->copies / in->n_sets * in->n_sets : in->n_sets;
}

// The caches that the kind reads, borrowed or new.
static void make_caches(struct hs_perf_node * n, struct inputs * in, const struct hs_perf_node * others, int n_other) {
    const struct hs_perf_spec * s = &n->spec;
    const int64_t pages = (s->n_keys + PAGE - 1) / PAGE, ring = WINDOW - 1 + (s->n_new > RING_NEW ? s->n_new : RING_NEW);
    if (s->kind == HS_PERF_FLASH) {
        n->k = ggml_new_tensor_4d(n->ctx, s->type, s->d, s->n_keys, s->n_head_kv, in->n_seq);
        n->v = ggml_new_tensor_4d(n->ctx, s->type, s->d, s->n_keys, s->n_head_kv, in->n_seq);
        in->mask = s->n_new > 1 ? ggml_new_tensor_2d(n->ctx, GGML_TYPE_F16, s->n_keys, s->n_new) : NULL;
        return;
    }
    if (s->kind == HS_PERF_WINDOW || is_sparse(s)) {
        in->ring_k = ggml_new_tensor_4d(n->ctx, s->type, s->d, ring, s->n_head_kv, in->n_seq);
        in->ring_v = ggml_new_tensor_4d(n->ctx, s->type, s->d, ring, s->n_head_kv, in->n_seq);
    }
    if (s->kind == HS_PERF_WINDOW) {
        return;
    }
    for (int i = 0; i < n_other && !n->table; i++) {
        const struct hs_perf_spec * o = &others[i].spec;
        if (others[i].table && o->type == s->type && o->n_head_kv == s->n_head_kv && o->d == s->d && o->n_keys == s->n_keys &&
            others[i].table->ne[1] == in->n_seq) {
            n->k = others[i].k;
            n->v = others[i].v;
            n->table = others[i].table;
        }
    }
    in->own_pages = !n->table;
    if (in->own_pages) {
        n->k = ggml_new_tensor_4d(n->ctx, s->type, s->d, PAGE, s->n_head_kv, pages * in->n_seq);
        n->v = ggml_new_tensor_4d(n->ctx, s->type, s->d, PAGE, s->n_head_kv, pages * in->n_seq);
        n->table = ggml_new_tensor_2d(n->ctx, GGML_TYPE_I32, pages, in->n_seq);
    }
}

static struct ggml_tensor * one_sequence(struct hs_perf_node * n, struct ggml_tensor * cache, int seq) {
    return ggml_view_3d(n->ctx, cache, cache->ne[0], cache->ne[1], cache->ne[2], cache->nb[1], cache->nb[2], (size_t) seq * cache->nb[3]);
}

// Copy c of the node.
static struct hs_op_result make(struct hs_perf_node * n, const struct inputs * in, int c) {
    struct ggml_context * ctx = n->ctx;
    struct ggml_tensor * pos_seq = in->pos_seq[c % in->n_sets];
    switch (n->spec.kind) {
        case HS_PERF_SELECT:
            return hs_select_blocks(ctx, HS_IMPL_KERNEL, &n->params, in->scores, pos_seq);
        case HS_PERF_FLASH: {
            const int seq = c % in->n_seq;
            struct ggml_tensor * out = ggml_flash_attn_ext(ctx, ggml_permute(ctx, in->q, 0, 2, 1, 3), one_sequence(n, n->k, seq),
                one_sequence(n, n->v, seq), in->mask, n->params.scale, 0.0f, 0.0f);
            return (struct hs_op_result) { .node = out, .out = out };
        }
        case HS_PERF_WINDOW:
            return hs_attn_window(ctx, HS_IMPL_KERNEL, &n->params, in->q, in->ring_k, in->ring_v, pos_seq, NULL);
        case HS_PERF_FULL:
        case HS_PERF_FULL_NOSCORES:
            return hs_attn_full(ctx, HS_IMPL_KERNEL, &n->params, in->q, n->k, n->v, n->table, pos_seq, NULL);
        default: {
            const struct hs_attn_sparse_args a = { .q = in->q, .k = n->k, .v = n->v, .sel = in->sel[c % in->n_sets], .table = n->table,
                .pos_seq = pos_seq, .win_k = in->ring_k, .win_v = in->ring_v, .gates = in->gates };
            return hs_attn_sparse(ctx, HS_IMPL_KERNEL, &n->params, &a);
        }
    }
}

// The inputs that a kind has beside its caches.
static void make_inputs(struct hs_perf_node * n, struct inputs * in) {
    const struct hs_perf_spec * s = &n->spec;
    for (int i = 0; i < in->n_sets; i++) {
        in->pos_seq[i] = ggml_new_tensor_2d(n->ctx, GGML_TYPE_I32, s->n_new, 2);
        in->sel[i] = is_sparse(s) ? ggml_new_tensor_3d(n->ctx, GGML_TYPE_I32, TOP_K, s->n_head_kv, s->n_new) : NULL;
    }
    if (s->kind == HS_PERF_SELECT) {
        in->scores = ggml_new_tensor_3d(n->ctx, GGML_TYPE_F32, (s->n_keys + BLOCK - 1) / BLOCK, s->n_head_kv, s->n_new);
        return;
    }
    in->q = ggml_new_tensor_3d(n->ctx, GGML_TYPE_F32, s->d, s->n_head, s->n_new);
    in->gates = is_sparse(s) ? ggml_new_tensor_2d(n->ctx, GGML_TYPE_F32, 2 * s->n_head, s->n_new) : NULL;
}

// Fill what there is; count the work of one copy.
static bool fill(struct hs_perf_node * n, const struct inputs * in) {
    const struct hs_perf_spec * s = &n->spec;
    const int first = s->n_keys - s->n_new;
    const double rows = 2.0 * (double) ggml_row_size(s->type, s->d); // K and V
    double visible = 0.0, distinct = 0.0; // keys, over queries and KV heads; keys that some query sees, over KV heads
    bool ok = (!in->q || fill_normal(in->q, 3)) && (!in->gates || fill_normal(in->gates, 4)) && (!in->scores || fill_normal(in->scores, 6));
    ok = ok && (!in->mask || fill_mask(in->mask, first));
    for (int i = 0; ok && i < in->n_sets; i++) {
        ok = fill_positions(in->pos_seq[i], first, i % in->n_seq);
        if (in->sel[i]) {
            visible = distinct = 0.0; // the same of every set, but for chance
            ok = ok && fill_selection(n, in->sel[i], 100 + 1000 * (uint64_t) i, &visible, &distinct);
        }
    }
    if (s->kind == HS_PERF_SELECT) {
        n->bytes = (double) s->n_new * s->n_head_kv * sizeof(float) * (double) in->scores->ne[0];
        return ok;
    }
    if (s->kind == HS_PERF_FLASH) {
        ok = ok && fill_cache(n->k, 1, NULL, 0, in->n_seq, s->n_keys) && fill_cache(n->v, 2, NULL, 0, in->n_seq, s->n_keys);
    } else if (in->own_pages) {
        ok = ok && fill_pages(n);
    }
    if (!is_sparse(s) && s->kind != HS_PERF_WINDOW) {
        visible = (double) s->n_head_kv * s->n_new * (first + 0.5 * (s->n_new + 1));
        distinct = (double) s->n_head_kv * s->n_keys;
    }
    if (in->ring_k) {
        ok = ok && fill_cache(in->ring_k, 1, NULL, 0, in->n_seq, s->n_keys) && fill_cache(in->ring_v, 2, NULL, 0, in->n_seq, s->n_keys);
        for (int t = first; t < s->n_keys; t++) {
            visible += (double) s->n_head_kv * (t + 1 < WINDOW ? t + 1 : WINDOW);
        }
        distinct += (double) s->n_head_kv * fmin(s->n_keys, WINDOW - 1 + s->n_new);
    }
    n->bytes = distinct * rows;
    n->flops = visible * (s->n_head / s->n_head_kv) * 2.0 * (2.0 * s->d);
    return ok;
}

bool hs_perf_build(struct hs_perf_node * n, ggml_backend_t backend, const struct hs_perf_spec * spec, int threads,
    const struct hs_perf_node * others, int n_other) {
    *n = (struct hs_perf_node) { .spec = *spec, .copies = 1 };
    n->params = (struct hs_op_params) { .scale = 1.0f / sqrtf((float) spec->d), .block_size = BLOCK, .top_k = TOP_K, .window = WINDOW,
        .emit_scores = spec->kind == HS_PERF_FULL, .n_threads_max = threads };
    struct inputs in = { .n_sets = 1, .n_seq = 1 };
    if (!ggml_backend_is_cpu(backend)) {
        plan_copies(n, &in);
    }
    const size_t n_tensors = 32 + TENSORS_A_COPY * (size_t) n->copies;
    const struct ggml_init_params ip = { n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false), NULL, true };
    n->ctx = ggml_init(ip);
    if (!n->ctx) {
        return fail(n, "out of memory");
    }
    make_caches(n, &in, others, n_other);
    make_inputs(n, &in);
    n->graph = ggml_new_graph_custom(n->ctx, n_tensors, false);
    for (int c = 0; c < n->copies; c++) {
        const struct hs_op_result r = make(n, &in, c);
        if (!r.node) {
            return fail(n, r.error);
        }
        if (!ggml_backend_supports_op(backend, r.node)) {
            return fail(n, "the backend does not support the node");
        }
        n->out = c == 0 ? r.out : n->out;
        ggml_build_forward_expand(n->graph, r.node);
    }
    n->buffer = ggml_backend_alloc_ctx_tensors(n->ctx, backend);
    return (n->buffer && fill(n, &in)) || fail(n, "out of memory");
}

void hs_perf_free(struct hs_perf_node * n) {
    ggml_backend_buffer_free(n->buffer);
    ggml_free(n->ctx);
    *n = (struct hs_perf_node) { 0 };
}
