// Window rings and their checkpoints. A ring forgets: going back further than it holds needs the w-1 positions before the target from a saved
// copy. One copy is small (w-1 positions of each windowed layer), so a few dozen are kept at prompt ends and other places worth going back to.
#include <stdlib.h>
#include <string.h>

#include "kv_cache.h"
#include "status.h"

size_t hs_kv_checkpoint_bytes(const struct hs_kv * kv) {
    if (kv->ring_size == 0) return 0;
    size_t n = 0;
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        if (!kv->plan->layers[il].owns_ring) continue;
        n += (kv->k[il]->nb[1] + kv->v[il]->nb[1]) * (size_t) kv->k[il]->ne[2];
    }
    return n * (size_t) (kv->plan->window - 1);
}

// Move positions first .. pos-1 between the rings and a flat buffer laid out [layer][k, v][head][w-1 rows]; row 0 is position pos-(w-1).
static void move_rings(const struct hs_kv * kv, int32_t seq, int32_t pos, uint8_t * buf, bool to_ring) {
    const int32_t rows = kv->plan->window - 1, base = pos - rows, first = base > 0 ? base : 0;
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        if (!kv->plan->layers[il].owns_ring) continue;
        for (int is_v = 0; is_v < 2; is_v++) {
            struct ggml_tensor * t = (is_v ? kv->v : kv->k)[il];
            for (int64_t h = 0; h < t->ne[2]; h++, buf += (size_t) rows * t->nb[1]) {
                for (int32_t j = first; j < pos; ) { // a run of slots that does not wrap
                    const int32_t slot = j % kv->ring_size;
                    int32_t run = kv->ring_size - slot;
                    if (run > pos - j) run = pos - j;
                    const size_t at = (size_t) seq * t->nb[3] + (size_t) h * t->nb[2] + (size_t) slot * t->nb[1];
                    uint8_t * flat = buf + (size_t) (j - base) * t->nb[1];
                    if (to_ring) ggml_backend_tensor_set(t, flat, at, (size_t) run * t->nb[1]);
                    else ggml_backend_tensor_get(t, flat, at, (size_t) run * t->nb[1]);
                    j += run;
                }
            }
        }
    }
}

void hs_kv_rings_read(const struct hs_kv * kv, int32_t seq, int32_t pos, uint8_t * out) {
    if (kv->checkpoint_bytes) move_rings(kv, seq, pos, out, false);
}

void hs_kv_rings_write(struct hs_kv * kv, int32_t seq, int32_t pos, const uint8_t * in) {
    struct hs_kv_seq * q = &kv->seq[seq];
    if (kv->checkpoint_bytes) move_rings(kv, seq, pos, (uint8_t *) (uintptr_t) in, true);
    const int32_t lo = pos - (kv->plan->window - 1);
    q->ring_lo = lo > 0 ? lo : 0;
    q->ring_hi = pos;
}

static void release(struct hs_kv * kv, struct hs_checkpoint * cp) {
    if (--cp->refs) return;
    free(cp->data);
    free(cp);
    kv->n_checkpoints_live--;
}

void hs_kv_drop_checkpoints(struct hs_kv * kv, int32_t seq, int32_t beyond) {
    struct hs_kv_seq * q = &kv->seq[seq];
    while (q->n_cps && q->cps[q->n_cps - 1]->pos > beyond) release(kv, q->cps[--q->n_cps]);
}

const struct hs_checkpoint * hs_kv_find_checkpoint(const struct hs_kv * kv, int32_t seq, int32_t n) {
    const struct hs_kv_seq * q = &kv->seq[seq];
    for (int32_t i = q->n_cps - 1; i >= 0; i--) {
        if (q->cps[i]->pos <= n) return q->cps[i];
    }
    return NULL;
}

// Over the limit, the one whose loss costs least goes: the smallest gap between its neighbours, so that the rest stay spread; never the newest.
static void evict_one(struct hs_kv * kv, struct hs_kv_seq * q) {
    int32_t victim = 0, best = INT32_MAX;
    for (int32_t i = 0; i + 1 < q->n_cps; i++) {
        const int32_t gap = q->cps[i + 1]->pos - (i ? q->cps[i - 1]->pos : 0);
        if (gap < best) {
            best = gap;
            victim = i;
        }
    }
    release(kv, q->cps[victim]);
    memmove(&q->cps[victim], &q->cps[victim + 1], (size_t) (q->n_cps - victim - 1) * sizeof *q->cps);
    q->n_cps--;
}

int hs_kv_checkpoint(struct hs_kv * kv, int32_t seq, hs_error * err) {
    struct hs_kv_seq * q = &kv->seq[seq];
    if (kv->checkpoint_bytes == 0 || kv->shape.n_checkpoints == 0 || q->len == 0) return hs_ok(err);
    if (q->n_cps && q->cps[q->n_cps - 1]->pos == q->len) return hs_ok(err);
    struct hs_checkpoint * cp = calloc(1, sizeof *cp);
    uint8_t * data = cp ? calloc(1, kv->checkpoint_bytes) : NULL;
    if (!data) {
        free(cp);
        return hs_fail(err, HS_E_MEMORY, "ring checkpoint: cannot allocate %zu bytes", kv->checkpoint_bytes);
    }
    *cp = (struct hs_checkpoint) { .refs = 1, .pos = q->len, .data = data };
    hs_kv_rings_read(kv, seq, q->len, data);
    q->cps[q->n_cps++] = cp;
    kv->n_checkpoints_live++;
    if (q->n_cps > kv->shape.n_checkpoints) evict_one(kv, q);
    return hs_ok(err);
}
