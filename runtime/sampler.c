// The sampler object and its chain: logits in, one token out. The steps live in sampler_filters.c, sampler_penalties.c and sampler_mirostat.c.
//
// Order: logit bias; then the steps named by `samplers` (default "edskypmxt": penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc,
// temperature); then a draw from what is left. temp <= 0: of the steps only the penalties and DRY count, then the best token is taken.
// mirostat 1 or 2: penalties and DRY, temperature, mirostat's own cut and draw.
#include "sampler_impl.h"
#include "status.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void * copy_of(const void * src, size_t n, size_t size) {
    if (n == 0) return NULL;
    void * dst = malloc(n * size);
    if (dst) memcpy(dst, src, n * size);
    return dst;
}

// Allocate all that a sampler with these parameters will ever need, but for the history. False: out of memory.
static bool allocate(struct hs_sampler * s, const hs_sampler_params * p) {
    const size_t n = (size_t) s->n_vocab;
    s->cands.data = malloc(n * sizeof *s->cands.data);
    s->cands.scratch = malloc(n * sizeof *s->cands.scratch);
    bool ok = s->cands.data && s->cands.scratch;
    if (p->typ_p < 1.0f && strchr(s->order, 'y')) ok = (s->cands.aux = malloc(n * sizeof *s->cands.aux)) && ok;
    if (hs_sampler_penalties_on(p)) ok = (s->count = calloc(n, sizeof *s->count)) && ok;
    if (hs_sampler_dry_on(p)) {
        ok = (s->dry_best = calloc(n, sizeof *s->dry_best)) && ok;
        ok = (s->dry_len = malloc(sizeof *s->dry_len)) && ok;          // grows with the history
    }
    if (p->n_logit_bias > 0) {
        ok = (s->bias_token = copy_of(p->logit_bias_token, (size_t) p->n_logit_bias, sizeof *s->bias_token)) && ok;
        ok = (s->bias = copy_of(p->logit_bias, (size_t) p->n_logit_bias, sizeof *s->bias)) && ok;
    }
    if (p->n_dry_breakers > 0) {
        size_t total = 0;
        for (int32_t i = 0; i < p->n_dry_breakers; i++) total += (size_t) p->dry_breaker_len[i];
        ok = (s->breakers = copy_of(p->dry_breakers, total, sizeof *s->breakers)) && ok;
        ok = (s->breaker_len = copy_of(p->dry_breaker_len, (size_t) p->n_dry_breakers, sizeof *s->breaker_len)) && ok;
    }
    return ok;
}

int hs_sampler_new(int32_t n_vocab, const hs_sampler_params * p, hs_sampler ** out, hs_error * err) {
    if (!out) return hs_fail(err, HS_E_ARG, "out: found a null pointer, expected a place for the sampler");
    const hs_sampler_params defaults = hs_sampler_default_params();
    if (!p) p = &defaults;
    HS_TRY(hs_sampler_check(n_vocab, p, err));

    struct hs_sampler * s = calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_E_MEMORY, "sampler: cannot allocate %zu bytes", sizeof *s);
    s->p = *p;
    s->n_vocab = n_vocab;
    strcpy(s->order, p->samplers ? p->samplers : HS_SAMPLERS_DEFAULT);     // its length was checked
    if (!allocate(s, p)) {
        hs_sampler_free(s);
        return hs_fail(err, HS_E_MEMORY, "sampler: cannot allocate the buffers for %d tokens (about %zu bytes)", n_vocab,
                       (size_t) n_vocab * 5 * sizeof(struct hs_cand));
    }
    s->p.logit_bias_token = s->bias_token;
    s->p.logit_bias = s->bias;
    s->p.dry_breakers = s->breakers;
    s->p.dry_breaker_len = s->breaker_len;
    s->p.samplers = s->order;

    // + 1: the token that leaves the penalties' window must still be there
    s->hist_keep = p->n_prev;
    if (s->count && p->penalty_last_n < 0) s->hist_keep = INT64_MAX;
    if (s->count && s->hist_keep <= p->penalty_last_n) s->hist_keep = (int64_t) p->penalty_last_n + 1;
    if (s->dry_len && p->dry_penalty_last_n < 0) s->hist_keep = INT64_MAX;
    if (s->dry_len && s->hist_keep < p->dry_penalty_last_n) s->hist_keep = p->dry_penalty_last_n;

    s->seed = p->seed == UINT32_MAX ? hs_rng_random_seed() : p->seed;
    hs_sampler_reset(s);
    *out = s;
    return hs_ok(err);
}

void hs_sampler_free(hs_sampler * s) {
    if (!s) return;
    free(s->cands.data);
    free(s->cands.scratch);
    free(s->cands.aux);
    free(s->count);
    free(s->dry_best);
    free(s->dry_len);
    free(s->bias_token);
    free(s->bias);
    free(s->breakers);
    free(s->breaker_len);
    free(s->hist);
    free(s);
}

void hs_sampler_reset(hs_sampler * s) {
    hs_history_clear(s);
    hs_rng_seed(&s->rng, s->seed);
    s->mu = 2.0f * s->p.mirostat_tau;
    s->drawn = false;
}

uint32_t hs_sampler_seed(const hs_sampler * s) { return s->seed; }

int hs_sampler_accept(hs_sampler * s, int32_t token, hs_error * err) {
    if (token < 0 || token >= s->n_vocab) return hs_fail(err, HS_E_ARG, "token: found %d, expected 0 to %d", token, s->n_vocab - 1);
    HS_TRY(hs_history_push(s, token, err));
    return hs_ok(err);
}

// The candidate list from the logits and the bias: every token whose logit is not -inf.
static int build(struct hs_sampler * s, const float * logits, hs_error * err) {
    struct hs_cands * c = &s->cands;
    bool all_finite = true;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        all_finite &= fabsf(logits[i]) <= FLT_MAX;
        c->data[i] = (struct hs_cand) { .id = i, .logit = logits[i] };
    }
    for (int32_t i = 0; !all_finite && i < s->n_vocab; i++) {
        if (!(logits[i] <= FLT_MAX)) return hs_fail(err, HS_E_ARG, "logits[%d]: found %g, expected a finite number or -inf", i, logits[i]);
    }
    for (int32_t i = 0; i < s->p.n_logit_bias; i++) {
        float * l = &c->data[s->bias_token[i]].logit;
        const float sum = *l + s->bias[i];
        *l = sum > FLT_MAX ? FLT_MAX : sum;
        all_finite &= sum >= -FLT_MAX;
    }
    c->size = s->n_vocab;
    c->sorted = false;
    c->id_ordered = true;
    if (all_finite) return HS_OK;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        if (c->data[i].logit >= -FLT_MAX) c->data[n++] = c->data[i];
    }
    c->size = n;
    if (n == 0) return hs_fail(err, HS_E_ARG, "logits: found -inf for all %d tokens, expected one that can be drawn", s->n_vocab);
    return HS_OK;
}

static void step(struct hs_sampler * s, char letter) {
    const hs_sampler_params * p = &s->p;
    struct hs_cands * c = &s->cands;
    switch (letter) {
        case 'e': hs_step_penalties(s); break;
        case 'd': hs_step_dry(s); break;
        case 's': hs_step_top_n_sigma(c, p->top_n_sigma); break;
        case 'k': hs_step_top_k(c, p->top_k); break;
        case 'y': hs_step_typ_p(c, p->typ_p, p->min_keep); break;
        case 'p': hs_step_top_p(c, p->top_p, p->min_keep); break;
        case 'm': hs_step_min_p(c, p->min_p, p->min_keep); break;
        case 'x': hs_step_xtc(c, p->xtc_probability, p->xtc_threshold, p->min_keep, &s->rng); break;
        case 't': hs_step_temp(c, p->temp, p->dynatemp_range, p->dynatemp_exponent); break;
        default: break;                                     // hs_sampler_check let only these through
    }
}

// The best token. n_probs > 0 keeps that many alternatives with their softmax probabilities for hs_sampler_candidates; else it stands alone.
static int32_t take_best(struct hs_sampler * s) {
    struct hs_cands * c = &s->cands;
    if (s->p.n_probs > 0) hs_cands_softmax(c);
    hs_cands_select(c, s->p.n_probs > 0 ? s->p.n_probs : 1);
    if (s->p.n_probs <= 0) c->data[0].p = 1.0f;
    return 0;
}

int hs_sampler_sample(hs_sampler * s, const float * logits, int32_t * token, hs_error * err) {
    if (!logits || !token) return hs_fail(err, HS_E_ARG, "%s: found a null pointer", logits ? "token" : "logits");
    s->drawn = false;
    HS_TRY(build(s, logits, err));

    const bool greedy = s->p.temp <= 0.0f, penalties_only = greedy || s->p.mirostat != 0;
    for (const char * letter = s->order; *letter; letter++) {
        if (!penalties_only || *letter == 'e' || *letter == 'd') step(s, *letter);
    }
    int32_t i;
    if (greedy) {
        i = take_best(s);
    } else if (s->p.mirostat != 0) {
        step(s, 't');
        i = s->p.mirostat == 1 ? hs_mirostat_v1(s) : hs_mirostat_v2(s);
    } else {
        hs_cands_softmax(&s->cands);
        i = hs_cands_draw(&s->cands, &s->rng);
    }
    *token = s->cands.data[i].id;
    s->drawn = true;
    return hs_ok(err);
}

// --- the distribution of the last draw ---
static bool more_probable(float pa, int32_t a, float pb, int32_t b) { return pa > pb || (pa == pb && a < b); }

// Put the least probable entry of the heap ids/probs[0..n) where its children allow, from position i down.
static void sift_down(int32_t * ids, float * probs, int32_t n, int32_t i) {
    for (;;) {
        int32_t least = i;
        for (int32_t k = 2 * i + 1; k <= 2 * i + 2 && k < n; k++) {
            if (more_probable(probs[least], ids[least], probs[k], ids[k])) least = k;
        }
        if (least == i) return;
        const int32_t id = ids[i];
        const float p = probs[i];
        ids[i] = ids[least], probs[i] = probs[least];
        ids[least] = id, probs[least] = p;
        i = least;
    }
}

// The list may be long and in any order, and *s is const: the best n_max are kept in a heap inside the caller's arrays, which is then sorted.
int32_t hs_sampler_candidates(const hs_sampler * s, int32_t * ids, float * probs, int32_t n_max) {
    if (!s->drawn || n_max <= 0) return 0;
    int32_t n = 0;
    for (int32_t i = 0; i < s->cands.size; i++) {
        const struct hs_cand * c = &s->cands.data[i];
        if (c->p <= 0) continue;
        if (n < n_max) {
            ids[n] = c->id, probs[n] = c->p;
            if (++n == n_max) {
                for (int32_t k = n / 2 - 1; k >= 0; k--) sift_down(ids, probs, n, k);
            }
        } else if (more_probable(c->p, c->id, probs[0], ids[0])) {
            ids[0] = c->id, probs[0] = c->p;
            sift_down(ids, probs, n, 0);
        }
    }
    for (int32_t k = n / 2 - 1; n < n_max && k >= 0; k--) sift_down(ids, probs, n, k);
    for (int32_t end = n - 1; end > 0; end--) {             // the least probable goes to the end
        const int32_t id = ids[0];
        const float p = probs[0];
        ids[0] = ids[end], probs[0] = probs[end];
        ids[end] = id, probs[end] = p;
        sift_down(ids, probs, end, 0);
    }
    return n;
}
