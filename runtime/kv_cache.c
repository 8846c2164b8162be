// Page pool, page table and sequences. Rings and their checkpoints: kv_rings.c.
#include "kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "status.h"

enum { HUGE_PAGES_FROM = 512 }; // tokens

static int32_t pages_for(int32_t n_tokens, int32_t page_size) { return (int32_t) (((int64_t) n_tokens + page_size - 1) / page_size); }

// Shape of one layer's K (or V) cache; false when the layer owns none.
static bool cache_shape(const struct hs_layer * l, bool is_v, int32_t page_size, int32_t n_pages, int32_t ring_size, int32_t n_seq, int64_t ne[4]) {
    if (!l->owns_pages && !l->owns_ring) return false;
    ne[0] = is_v ? l->head_dim_v : l->head_dim_k;
    ne[1] = l->owns_pages ? page_size : ring_size;
    ne[2] = l->n_head_kv;
    ne[3] = l->owns_pages ? n_pages : n_seq;
    return true;
}

// Bytes of a cache in a buffer of this type, padded as the allocator pads (CUDA adds to rows of quantised types).
static uint64_t cache_bytes(ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t ne[4]) {
    struct ggml_tensor t = { .type = type };
    for (int i = 0; i < 4; i++) t.ne[i] = ne[i];
    t.nb[0] = ggml_type_size(type);
    t.nb[1] = ggml_row_size(type, ne[0]);
    t.nb[2] = t.nb[1] * (size_t) ne[1];
    t.nb[3] = t.nb[2] * (size_t) ne[2];
    const uint64_t align = ggml_backend_buft_get_alignment(buft);
    return (ggml_backend_buft_get_alloc_size(buft, &t) + align - 1) / align * align;
}

static int32_t ring_size(const struct hs_layer_plan * plan, const struct hs_kv_shape * s) {
    for (int32_t il = 0; il < plan->n_layer; il++) { // a forced window (oracle mode) lies in pages: no ring, nothing to restore on a rewind
        if (plan->layers[il].owns_ring) return plan->window - 1 + s->n_ubatch;
    }
    return 0;
}

uint64_t hs_kv_layer_bytes(const struct hs_layer_plan * plan, const struct hs_kv_shape * s, int32_t il, ggml_backend_buffer_type_t buft) {
    uint64_t bytes = 0;
    for (int is_v = 0; is_v < 2; is_v++) {
        int64_t ne[4];
        if (cache_shape(&plan->layers[il], is_v, plan->page_size, pages_for(s->n_ctx, plan->page_size), ring_size(plan, s), s->n_seq, ne)) {
            bytes += cache_bytes(buft, is_v ? s->type_v : s->type_k, ne);
        }
    }
    return bytes;
}

static int32_t device_of(const struct hs_placement * placement, int32_t il) { return placement ? placement->layer[il] : HS_ON_CPU; }

void hs_kv_bytes(const struct hs_layer_plan * plan, const struct hs_kv_shape * s, const struct hs_placement * placement, struct hs_kv_bytes * out) {
    memset(out, 0, sizeof *out);
    out->n_pages = pages_for(s->n_ctx, plan->page_size);
    out->ring_size = ring_size(plan, s);
    for (int32_t il = 0; il < plan->n_layer; il++) {
        const struct hs_layer * l = &plan->layers[il];
        const uint64_t token = (ggml_row_size(s->type_k, l->head_dim_k) + ggml_row_size(s->type_v, l->head_dim_v)) * (uint64_t) l->n_head_kv;
        out->full_attention_per_token += token;
        *(l->owns_pages ? &out->pages : &out->rings) += hs_kv_layer_bytes(plan, s, il, hs_device_buft(device_of(placement, il)));
        if (l->owns_pages) out->per_token += token;
    }
    out->page = out->per_token * (uint64_t) plan->page_size;
}

// K and V tensors of the layers with pages (or with rings) that lie on one device, in a buffer of their own so that the allocator's figure can be read.
static int alloc_caches(struct hs_kv * kv, bool pages, int32_t device, hs_error * err) {
    struct ggml_init_params ip = { .mem_size = ggml_tensor_overhead() * (size_t) (2 * kv->plan->n_layer + 1), .no_alloc = true };
    struct ggml_context * ctx = ggml_init(ip);
    if (!ctx) return hs_fail(err, HS_E_MEMORY, "KV cache: cannot allocate %zu bytes for headers", ip.mem_size);
    kv->ctxs[kv->n_ctxs++] = ctx;
    uint64_t bytes = 0;
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        const struct hs_layer * l = &kv->plan->layers[il];
        if ((pages ? !l->owns_pages : !l->owns_ring) || device_of(kv->placement, il) != device) continue;
        for (int is_v = 0; is_v < 2; is_v++) {
            int64_t ne[4];
            cache_shape(l, is_v, kv->page_size, kv->n_pages, kv->ring_size, kv->shape.n_seq, ne);
            struct ggml_tensor * t = ggml_new_tensor(ctx, is_v ? kv->shape.type_v : kv->shape.type_k, 4, ne);
            ggml_format_name(t, "%s_%s-%d", is_v ? "v" : "k", pages ? "pages" : "ring", il);
            (is_v ? kv->v : kv->k)[il] = t;
        }
        bytes += hs_kv_layer_bytes(kv->plan, &kv->shape, il, hs_device_buft(device));
    }
    if (bytes == 0) return HS_OK;
    ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, hs_device_buft(device));
    if (!buf) {
        uint64_t free_bytes, total;
        hs_device_free_memory(device, &free_bytes, &total);
        return hs_fail(err, HS_E_MEMORY, "KV %s: cannot allocate %llu bytes on %s, %llu of %llu are free (n_ctx %d, n_seq %d)", pages ? "pages" : "rings",
            (unsigned long long) bytes, hs_device_name(device), (unsigned long long) free_bytes, (unsigned long long) total, kv->shape.n_ctx, kv->shape.n_seq);
    }
    (pages ? kv->pages_buf : kv->rings_buf)[1 + device] = buf;
    return HS_OK;
}

int hs_kv_new(const struct hs_layer_plan * plan, const struct hs_kv_shape * shape, const struct hs_placement * placement, struct hs_kv * kv, hs_error * err) {
    memset(kv, 0, sizeof *kv);
    struct hs_kv_bytes bytes;
    hs_kv_bytes(plan, shape, placement, &bytes);
    kv->plan = plan;
    kv->placement = placement;
    kv->shape = *shape;
    kv->page_size = plan->page_size;
    kv->n_pages = bytes.n_pages;
    kv->ring_size = bytes.ring_size;
    const size_t n_pages = (size_t) kv->n_pages, n_seq = (size_t) shape->n_seq;
    kv->k = calloc((size_t) plan->n_layer, sizeof *kv->k);
    kv->v = calloc((size_t) plan->n_layer, sizeof *kv->v);
    kv->refs = calloc(n_pages, sizeof *kv->refs);
    kv->free_list = calloc(n_pages, sizeof *kv->free_list);
    kv->table = calloc(n_pages * n_seq, sizeof *kv->table);
    kv->seq = calloc(n_seq, sizeof *kv->seq);
    bool ok = kv->k && kv->v && kv->refs && kv->free_list && kv->table && kv->seq;
    for (size_t s = 0; ok && s < n_seq; s++) {
        kv->seq[s].table = kv->table + s * n_pages;
        kv->seq[s].tokens = calloc((size_t) shape->n_ctx, sizeof(int32_t));
        kv->seq[s].cps = calloc((size_t) shape->n_checkpoints + 1, sizeof *kv->seq[s].cps);
        ok = kv->seq[s].tokens && kv->seq[s].cps;
    }
    int rc = ok ? HS_OK : hs_fail(err, HS_E_MEMORY, "KV cache: cannot allocate tables for %d pages and %d sequences", kv->n_pages, shape->n_seq);
    for (int32_t i = 0; ok && i < kv->n_pages; i++) kv->free_list[kv->n_free++] = kv->n_pages - 1 - i; // low pages first
    for (int32_t i = -1; rc == HS_OK && i < (placement ? placement->n_gpus : 0); i++) {
        const int32_t device = i < 0 ? HS_ON_CPU : placement->gpus[i];
        rc = alloc_caches(kv, true, device, err);
        if (rc == HS_OK) rc = alloc_caches(kv, false, device, err);
    }
    if (rc == HS_OK) {
        kv->checkpoint_bytes = hs_kv_checkpoint_bytes(kv);
        size_t most = 1;
        for (int32_t il = 0; il < plan->n_layer; il++) {
            if (kv->k[il] && kv->k[il]->nb[3] > most) most = kv->k[il]->nb[3];
            if (kv->v[il] && kv->v[il]->nb[3] > most) most = kv->v[il]->nb[3];
        }
        kv->staging_size = most;
        kv->staging = malloc(most);
        if (!kv->staging) rc = hs_fail(err, HS_E_MEMORY, "KV cache: cannot allocate %zu bytes", most);
    }
    if (rc != HS_OK) hs_kv_free(kv);
    return rc;
}

void hs_kv_free(struct hs_kv * kv) {
    for (int32_t s = 0; kv->seq && s < kv->shape.n_seq; s++) {
        if (kv->seq[s].cps) hs_kv_drop_checkpoints(kv, s, -1);
        free(kv->seq[s].tokens);
        free(kv->seq[s].cps);
    }
    free(kv->seq);
    free(kv->k);
    free(kv->v);
    free(kv->refs);
    free(kv->free_list);
    free(kv->table);
    free(kv->staging);
    for (int i = 0; i <= HS_MAX_DEVICES; i++) {
        if (kv->pages_buf[i]) ggml_backend_buffer_free(kv->pages_buf[i]);
        if (kv->rings_buf[i]) ggml_backend_buffer_free(kv->rings_buf[i]);
    }
    for (int32_t i = 0; i < kv->n_ctxs; i++) ggml_free(kv->ctxs[i]);
    memset(kv, 0, sizeof *kv);
}

static void release_page(struct hs_kv * kv, int32_t page) {
    if (--kv->refs[page] == 0) kv->free_list[kv->n_free++] = page;
}

// Not cleared: kernels never look at slots that a query does not see (the op cases fill those with NaN), so a large n_ctx costs memory only as it is used.
static int32_t take_page(struct hs_kv * kv) {
    const int32_t page = kv->free_list[--kv->n_free];
    kv->refs[page] = 1;
    kv->table_version++; // it goes into a table
    return page;
}

// Copy slab `src` of the last dimension (a page, or a sequence's ring) to slab `dst` in every layer that owns that kind of cache.
static void copy_slabs(struct hs_kv * kv, bool pages, int32_t src, int32_t dst) {
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        const struct hs_layer * l = &kv->plan->layers[il];
        if (pages ? !l->owns_pages : !l->owns_ring) continue;
        for (int is_v = 0; is_v < 2; is_v++) {
            struct ggml_tensor * t = (is_v ? kv->v : kv->k)[il];
            ggml_backend_tensor_get(t, kv->staging, (size_t) src * t->nb[3], t->nb[3]);
            ggml_backend_tensor_set(t, kv->staging, (size_t) dst * t->nb[3], t->nb[3]);
        }
    }
}

// Huge pages speed up long contexts; for a short one they would only be memory to clear, one for each layer's K and V.
static void grow_pages(struct hs_kv * kv) {
    if (kv->huge_pages || (int64_t) (kv->n_pages - kv->n_free) * kv->page_size < HUGE_PAGES_FROM) return;
    kv->huge_pages = true;
    if (kv->pages_buf[1 + HS_ON_CPU]) hs_buffer_move_to_huge_pages(kv->pages_buf[1 + HS_ON_CPU]);
    if (kv->rings_buf[1 + HS_ON_CPU]) hs_buffer_move_to_huge_pages(kv->rings_buf[1 + HS_ON_CPU]);
}

int hs_kv_reserve(struct hs_kv * kv, int32_t seq, int32_t n, hs_error * err) {
    struct hs_kv_seq * q = &kv->seq[seq];
    const int64_t end = (int64_t) q->len + n;
    if (n < 1) return HS_OK;
    const int32_t first = q->len / kv->page_size;
    const int32_t want = end > kv->shape.n_ctx ? kv->n_pages + 1 : pages_for((int32_t) end, kv->page_size);
    int32_t need = want > q->n_pages ? want - q->n_pages : 0;
    for (int32_t i = first; i < q->n_pages; i++) need += kv->refs[q->table[i]] > 1;
    if (need > kv->n_free || want > kv->n_pages) {
        return hs_fail(err, HS_E_FULL, "context is full: sequence %d holds %d tokens, %d more need %d pages of %d tokens, %d are free (n_ctx %d)",
            seq, q->len, n, need, kv->page_size, kv->n_free, kv->shape.n_ctx);
    }
    for (int32_t i = first; i < q->n_pages; i++) { // copy on write
        const int32_t old = q->table[i];
        if (kv->refs[old] < 2) continue;
        const int32_t page = take_page(kv);
        copy_slabs(kv, true, old, page);
        q->table[i] = page;
        release_page(kv, old);
    }
    while (q->n_pages < want) q->table[q->n_pages++] = take_page(kv);
    grow_pages(kv);
    return HS_OK;
}

static void forget_overwritten(struct hs_kv * kv, struct hs_kv_seq * q, int32_t n) {
    const int32_t lo = q->len + n - kv->ring_size;
    if (lo > q->ring_lo) q->ring_lo = lo;
}

void hs_kv_commit(struct hs_kv * kv, int32_t seq, const int32_t * tokens, int32_t n) {
    struct hs_kv_seq * q = &kv->seq[seq];
    memcpy(q->tokens + q->len, tokens, (size_t) n * sizeof *tokens);
    forget_overwritten(kv, q, n);
    q->len += n;
    q->ring_hi = q->len;
}

static void trim_pages(struct hs_kv * kv, struct hs_kv_seq * q) {
    const int32_t keep = pages_for(q->len, kv->page_size);
    while (q->n_pages > keep) release_page(kv, q->table[--q->n_pages]);
}

void hs_kv_abandon(struct hs_kv * kv, int32_t seq, int32_t n) {
    struct hs_kv_seq * q = &kv->seq[seq];
    if (kv->ring_size) forget_overwritten(kv, q, n);
    trim_pages(kv, q);
}

bool hs_kv_rings_hold(const struct hs_kv * kv, int32_t seq, int32_t n) {
    if (kv->ring_size == 0 || n == 0) return true;
    const struct hs_kv_seq * q = &kv->seq[seq];
    const int32_t lo = n - (kv->plan->window - 1) > 0 ? n - (kv->plan->window - 1) : 0;
    return q->ring_lo <= lo && n <= q->ring_hi;
}

void hs_kv_truncate(struct hs_kv * kv, int32_t seq, int32_t n) {
    struct hs_kv_seq * q = &kv->seq[seq];
    q->len = n;
    if (n == 0) q->ring_lo = 0;
    if (q->ring_hi > n) q->ring_hi = n;
    trim_pages(kv, q);
    hs_kv_drop_checkpoints(kv, seq, n);
}

int hs_kv_fork(struct hs_kv * kv, int32_t src, int32_t dst, hs_error * err) {
    if (src == dst) return hs_ok(err);
    hs_kv_truncate(kv, dst, 0);
    struct hs_kv_seq * a = &kv->seq[src], * b = &kv->seq[dst];
    const int32_t n = pages_for(a->len, kv->page_size);
    for (int32_t i = 0; i < n; i++) {
        b->table[i] = a->table[i];
        kv->refs[a->table[i]]++;
    }
    kv->table_version++;
    b->n_pages = n;
    b->len = a->len;
    b->ring_lo = a->ring_lo;
    b->ring_hi = a->ring_hi;
    memcpy(b->tokens, a->tokens, (size_t) a->len * sizeof *a->tokens);
    copy_slabs(kv, false, src, dst);
    for (int32_t i = 0; i < a->n_cps; i++) {
        b->cps[i] = a->cps[i];
        b->cps[i]->refs++;
    }
    b->n_cps = a->n_cps;
    return hs_ok(err);
}

int64_t hs_kv_row(const struct hs_kv * kv, const struct hs_row_set * set, int32_t seq, int32_t pos, int32_t head) {
    if (set->ring) return ((int64_t) seq * set->n_head_kv + head) * kv->ring_size + pos % kv->ring_size;
    const int32_t page = kv->seq[seq].table[pos / kv->page_size];
    return ((int64_t) page * set->n_head_kv + head) * kv->page_size + pos % kv->page_size;
}
