// The end of an item: sinks, division, gates, block scores. Included once per level.
#pragma once

#include "engine.h"

// out (+)= sigmoid(gate) * o / denominator, one row. gate: d_v logits, or one for all channels, or NULL.
static void finish_row(float * out, const float * o, float inv, const float * gate, bool per_channel, bool add, int32_t d_v) {
    const vf f = vf_mul(vf_set(inv), gate && !per_channel ? vf_sigmoid(vf_set(*gate)) : vf_set(1.0f));
    for (int32_t d = 0; d < d_v; d += VL) {
        vf x = vf_mul(vf_load(o + d), f);
        if (gate && per_channel) {
            x = vf_mul(x, vf_sigmoid(vf_load(gate + d)));
        }
        vf_store(out + d, add ? vf_add(vf_load(out + d), x) : x);
    }
}

// scores[i] = max over rows of block maximum - log of the denominator; scores only go up to the block of t
static void finish_scores(const struct sub * u, int32_t query, int64_t t, const float * lse, float * scores) {
    const int32_t r0 = query * u->n_rep;
    for (int64_t i = 0; i <= t / u->block_size; i++) {
        const float * b = u->block_max + i * u->rows;
        float best = b[r0] - lse[r0];
        for (int32_t r = r0 + 1; r < r0 + u->n_rep; r++) {
            best = b[r] - lse[r] > best ? b[r] - lse[r] : best;
        }
        scores[i] = best;
    }
}

static void item_finish(const struct core * w, float * state) {
    const struct hs_attn * a = w->a;
    const struct hs_plan * pl = &a->plan;
    const int64_t n_gate = a->gates ? a->gates->ne[0] / 2 : 0;
    const bool per_channel = n_gate != pl->n_head;
    for (int b = 0; b < pl->n_branch; b++) {
        for (int32_t c = 0; c < pl->chunk / pl->n_rep[b]; c++) {
            struct sub u = sub_make(w, state, b, c);
            float * lse = u.row_fix; // free by now
            for (int32_t r = 0; r < u.nq * u.n_rep; r++) {
                const int64_t token = w->tok0 + r / u.n_rep, head = u.head_kv * u.n_rep + r % u.n_rep;
                const float sink = u.br->sinks ? u.br->sinks[head] : HS_SINK_ABSENT;
                float m = u.m[r], l = u.l[r], fix = 1.0f;
                if (sink > HS_SINK_ABSENT) {
                    const float now = sink > m ? sink : m;
                    fix = expf(m - now);
                    l = l * fix + expf(sink - now);
                    m = now;
                }
                const float * gate = a->gates ? (const float *) a->gates->data + token * 2 * n_gate + b * n_gate + head * (per_channel ? pl->d_v : 1)
                                              : NULL;
                finish_row(a->out + (token * pl->n_head + head) * pl->d_v, u.o + (ptrdiff_t) r * pl->d_v, l > 0.0f ? fix / l : l == 0.0f ? 0.0f : NAN, gate,
                    per_channel, b > 0, pl->d_v);
                if (u.block_size > 0) {
                    lse[r] = m + logf(l);
                }
            }
            for (int32_t i = 0; i < u.nq && u.block_size > 0; i++) {
                const int64_t token = w->tok0 + i;
                finish_scores(&u, i, a->pos[token], lse, a->scores + (token * (pl->n_head / u.n_rep) + u.head_kv) * pl->n_blocks);
            }
        }
    }
}
