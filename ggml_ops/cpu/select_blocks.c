// CPU kernel of block selection. Replaces a full sort: a heap of the best top_k blocks, its root the worst of them, so most blocks cost one
// comparison.
// Nothing is summed; the result does not depend on the number of threads. Rows (KV head, token) are dealt out in turn.
#include "cpu.h"

// Is block a worse than b? Among equal scores the higher index is worse (the tie rule).
static bool worse(const float * s, int32_t a, int32_t b) {
    return s[a] < s[b] || (s[a] == s[b] && a > b);
}

// Move the root of heap[0..n) down to its place: every parent is worse than its children.
static void sift(const float * s, int32_t * heap, int32_t n, int32_t i) {
    const int32_t x = heap[i];
    for (int32_t c = 2 * i + 1; c < n; c = 2 * i + 1) {
        c += c + 1 < n && worse(s, heap[c + 1], heap[c]);
        if (!worse(s, heap[c], x)) {
            break;
        }
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = x;
}

// Ascending, in place: a heap with the largest index at its root, taken off one by one.
static void sort_indices(int32_t * x, int32_t n) {
    for (int32_t start = n / 2 - 1, end = n; end > 1;) {
        if (start >= 0) {
            start--; // still building
        } else {
            end--;
            const int32_t top = x[0];
            x[0] = x[end];
            x[end] = top;
        }
        int32_t i = start + 1;
        const int32_t v = x[i];
        for (int32_t c = 2 * i + 1; c < end; c = 2 * i + 1) {
            c += c + 1 < end && x[c + 1] > x[c];
            if (x[c] <= v) {
                break;
            }
            x[i] = x[c];
            i = c;
        }
        x[i] = v;
    }
}

static void select_row(const float * s, int32_t n_visible, int32_t top_k, int32_t * sel) {
    const int32_t n = n_visible < top_k ? n_visible : top_k;
    for (int32_t i = 0; i < n; i++) {
        sel[i] = i;
    }
    for (int32_t i = n; i < top_k; i++) {
        sel[i] = HS_BLOCK_NONE;
    }
    if (n_visible <= top_k) {
        return;
    }
    for (int32_t i = n / 2 - 1; i >= 0; i--) {
        sift(s, sel, n, i);
    }
    for (int32_t i = n; i < n_visible; i++) { // ascending, so an equal score never replaces a lower block
        if (s[i] > s[sel[0]]) {
            sel[0] = i;
            sift(s, sel, n, 0);
        }
    }
    sort_indices(sel, n);
}

void hs_cpu_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * scores = dst->src[HS_SELECT_SCORES];
    const int32_t * pos = dst->src[HS_SELECT_POS_SEQ]->data;
    const int64_t n_head_kv = scores->ne[1], n_rows = n_head_kv * scores->ne[2];
    for (int64_t row = ith; row < n_rows; row += nth) {
        const int32_t n_visible = pos[row / n_head_kv] / p->block_size + 1;
        select_row((const float *) scores->data + row * scores->ne[0], n_visible, p->top_k, (int32_t *) dst->data + row * p->top_k);
    }
}

// Everything that the builder lets through.
bool hs_cpu_select_blocks_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_SELECT_BLOCKS;
}
