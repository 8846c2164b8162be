// Few rows: keys in vector lanes. Included once per level.
#pragma once

#include "sub.h"

static float few_max(const float * s, int32_t n) {
    float best = HS_MASKED;
    int32_t j = 0;
    if (n >= VL) {
        vf v = vf_load(s);
        for (j = VL; j + VL <= n; j += VL) {
            v = vf_max(v, vf_load(s + j));
        }
        best = vf_hmax(v);
    }
    for (; j < n; j++) {
        best = s[j] > best ? s[j] : best;
    }
    return best;
}

// Few rows: keys in vector lanes. s is [row][HS_TILE_KEYS] and holds the logits of one query's keys lo..hi; s[0] is key lo.
static void few_softmax(struct sub * u, int64_t j0, int32_t query) {
    const int32_t d_v = u->a->plan.d_v, r0 = query * u->n_rep, lo = u->lo[query], n = u->hi[query] - lo + 1;
    for (int32_t r = r0; r < r0 + u->n_rep; r++) {
        float * s = u->s + (ptrdiff_t) r * HS_TILE_KEYS;
        float best = HS_MASKED;
        for (int32_t j = 0; j < n && u->block_size > 0;) {
            const int64_t block = (j0 + lo + j) / u->block_size, left = (block + 1) * u->block_size - (j0 + lo);
            const int32_t end = left < n ? (int32_t) left : n;
            const float x = few_max(s + j, end - j);
            float * b = u->block_max + block * u->rows + r;
            *b = x > *b ? x : *b;
            best = x > best ? x : best;
            j = end;
        }
        if (u->block_size <= 0) {
            best = few_max(s, n);
        }
        const float now = best > u->m[r] ? best : u->m[r];
        for (int32_t j = n; j % VL != 0; j++) {
            s[j] = HS_MASKED;
        }
        vf sum = vf_set(0.0f);
        for (int32_t j = 0; j < n; j += VL) {
            const vf e = vf_exp(vf_sub(vf_load(s + j), vf_set(now)));
            vf_store(s + j, e);
            sum = vf_add(sum, e);
        }
        if (now != u->m[r]) {
            const float fix = expf(u->m[r] - now);
            scale_row(u->o + (ptrdiff_t) r * d_v, fix, d_v);
            u->l[r] *= fix;
            u->m[r] = now;
        }
        u->l[r] += vf_sum(sum);
    }
}
