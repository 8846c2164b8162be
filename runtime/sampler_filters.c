// The steps of the chain that drop or rescale candidates. Each leaves at least one candidate; a parameter at its "off" value changes nothing.
// Sources: llama.cpp's documented chain; typ_p: Meister et al. 2022 (arXiv 2202.00666); top_n_sigma: arXiv 2411.07641; dynamic temperature:
// arXiv 2309.02772.
#include "sampler_impl.h"

#include <float.h>
#include <math.h>

void hs_step_top_k(struct hs_cands * c, int32_t k) {
    if (k > 0) hs_cands_select(c, k);
}

// The smallest prefix (most probable first) whose probability reaches p.
void hs_step_top_p(struct hs_cands * c, float p, int32_t min_keep) {
    if (p >= 1.0f) return;
    hs_cands_sort(c);
    hs_cands_softmax(c);
    double cum = 0;
    for (int32_t i = 0; i < c->size; i++) {
        cum += c->data[i].p;
        if (cum >= p && i + 1 >= min_keep) {
            c->size = i + 1;
            return;
        }
    }
}

// Those at least p times as probable as the best one; compared as logits, so no softmax is needed.
void hs_step_min_p(struct hs_cands * c, float p, int32_t min_keep) {
    if (p <= 0.0f) return;
    const float bound = hs_cands_max(c) + logf(p);
    int32_t n = 0;
    for (int32_t i = 0; i < c->size; i++) n += c->data[i].logit >= bound;
    if (n < min_keep) {
        hs_cands_select(c, min_keep);
        return;
    }
    if (c->sorted) {
        c->size = n;
        return;
    }
    n = 0;
    for (int32_t i = 0; i < c->size; i++) {
        if (c->data[i].logit >= bound) c->data[n++] = c->data[i];
    }
    c->size = n;
}

static double entropy_of(const struct hs_cands * c) {
    double h = 0;
    for (int32_t i = 0; i < c->size; i++) {
        if (c->data[i].p > 0) h -= (double) c->data[i].p * log(c->data[i].p);
    }
    return h;
}

// Candidates by how near their surprise is to the entropy, until their probability exceeds p. The list's order stays as it is.
void hs_step_typ_p(struct hs_cands * c, float p, int32_t min_keep) {
    if (p >= 1.0f || c->size <= 1) return;
    hs_cands_softmax(c);
    const double h = entropy_of(c);
    for (int32_t i = 0; i < c->size; i++) {
        const float pi = c->data[i].p;
        c->aux[i] = (struct hs_cand) { .id = i, .logit = pi > 0 ? -(float) fabs(-log(pi) - h) : -INFINITY, .p = pi };
    }
    const struct hs_cand * by_score = hs_cand_sort(c->aux, c->scratch, c->size, true);
    double cum = 0;
    int32_t n = 0;
    while (n < c->size && (cum <= p || n < min_keep)) cum += by_score[n++].p;
    for (int32_t i = n; i < c->size; i++) c->data[by_score[i].id].p = -1.0f;       // mark what goes
    int32_t m = 0;
    for (int32_t i = 0; i < c->size; i++) {
        if (c->data[i].p >= 0) c->data[m++] = c->data[i];
    }
    c->size = m;
}

// Those within n standard deviations (of all candidates' logits) of the best one. llama.cpp keeps the others at -inf; here they leave the list.
void hs_step_top_n_sigma(struct hs_cands * c, float n) {
    if (n <= 0.0f || c->size <= 1) return;
    double mean = 0, var = 0;
    for (int32_t i = 0; i < c->size; i++) mean += c->data[i].logit;
    mean /= c->size;
    for (int32_t i = 0; i < c->size; i++) var += (c->data[i].logit - mean) * (c->data[i].logit - mean);
    const double bound = hs_cands_max(c) - n * sqrt(var / c->size);
    int32_t m = 0;
    for (int32_t i = 0; i < c->size; i++) {
        if (c->data[i].logit >= bound) c->data[m++] = c->data[i];
    }
    c->size = m;
}

// Exclude top choices: of the candidates with at least `threshold` probability all but the least probable go, with the given probability.
void hs_step_xtc(struct hs_cands * c, float probability, float threshold, int32_t min_keep, struct hs_rng * r) {
    if (probability <= 0.0f || threshold > 0.5f || c->size < 2) return;
    if (hs_rng_uniform(r) >= probability) return;
    hs_cands_sort(c);
    hs_cands_softmax(c);
    int32_t n = 0;
    while (n < c->size && c->data[n].p >= threshold) n++;
    const int32_t drop = n - 1;
    if (drop <= 0 || c->size - drop < min_keep) return;
    for (int32_t i = drop; i < c->size; i++) c->data[i - drop] = c->data[i];
    c->size -= drop;
}

// Divide the logits by temp > 0; with range > 0 the temperature moves in temp +- range with the entropy of the candidates.
void hs_step_temp(struct hs_cands * c, float temp, float range, float exponent) {
    if (range > 0.0f) {
        if (c->size <= 1) return;
        const float lo = fmaxf(0.0f, temp - range), hi = temp + range;
        hs_cands_softmax(c);
        temp = lo + (hi - lo) * powf((float) fmin(1.0, entropy_of(c) / log(c->size)), exponent);
    }
    // A temperature so near 0 that the quotients overflow means: the best candidate alone.
    const float max = hs_cands_max(c);
    float biggest = 0;
    for (int32_t i = 0; i < c->size; i++) biggest = fmaxf(biggest, fabsf(c->data[i].logit));
    if (!(temp > 0.0f) || biggest / temp > FLT_MAX) {
        hs_cands_sort(c);
        c->data[0].logit = max;
        c->size = 1;
        return;
    }
    for (int32_t i = 0; i < c->size; i++) c->data[i].logit /= temp;
}
