// Mirostat 1 and 2 (Basu et al. 2021, arXiv 2007.14966): the candidates are cut so that the surprise of what is drawn stays near tau bits.
#include "sampler_impl.h"

#include <math.h>

// Draw from the candidates and move mu by the surprise that was seen.
static int32_t draw_and_learn(struct hs_sampler * s) {
    hs_cands_softmax(&s->cands);
    const int32_t i = hs_cands_draw(&s->cands, &s->rng);
    const float surprise = -log2f(s->cands.data[i].p);
    s->mu -= s->p.mirostat_eta * (surprise - s->p.mirostat_tau);
    return i;
}

// Estimate the exponent of Zipf's law from the best 100 candidates, and from it the k whose expected surprise is mu.
int32_t hs_mirostat_v1(struct hs_sampler * s) {
    enum { M = 100 };
    struct hs_cands * c = &s->cands;
    hs_cands_sort(c);
    hs_cands_softmax(c);
    double tb = 0, tt = 0;
    for (int32_t i = 0; i + 1 < M && i + 1 < c->size && c->data[i + 1].p > 0; i++) {
        const double t = log((double) (i + 2) / (i + 1)), b = log((double) c->data[i].p / c->data[i + 1].p);
        tb += t * b;
        tt += t * t;
    }
    const double zipf = tt > 0 ? tb / tt : 1.0, eps = zipf - 1.0;
    const double k = pow(eps * pow(2.0, s->mu) / (1.0 - pow(s->n_vocab, -eps)), 1.0 / zipf);
    // flat distributions (zipf near 0 or 1) have no finite k: keep all
    if (k < c->size) hs_cands_select(c, k >= 1.0 ? (int32_t) k : 1);
    return draw_and_learn(s);
}

// Drop every candidate whose surprise is over mu.
int32_t hs_mirostat_v2(struct hs_sampler * s) {
    struct hs_cands * c = &s->cands;
    hs_cands_sort(c);
    hs_cands_softmax(c);
    int32_t n = 1;
    while (n < c->size && -log2f(c->data[n].p) <= s->mu) n++;
    c->size = n;
    return draw_and_learn(s);
}
