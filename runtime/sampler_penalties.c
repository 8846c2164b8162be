// What the text so far does to the logits: repetition, frequency and presence penalties, DRY; and the history that they look at.
// Sources: repetition: Keskar et al. 2019 (arXiv 1909.05858) with llama.cpp's rule for signs; frequency and presence: OpenAI's API; DRY: p-e-w's
// "Don't Repeat Yourself" as in llama.cpp, with sequence breakers given as token sequences.
#include "sampler_impl.h"
#include "status.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static float clamp_logit(float l) { return l > FLT_MAX ? FLT_MAX : l < -FLT_MAX ? -FLT_MAX : l; }

static void logits_changed(struct hs_cands * c) {
    c->sorted = false;      // id_ordered is about positions and stays
}

// logit > 0: divided by penalty_repeat, else multiplied; then minus count * penalty_freq + penalty_present.
void hs_step_penalties(struct hs_sampler * s) {
    if (!s->count || s->hist_len == 0) return;
    struct hs_cands * c = &s->cands;
    for (int32_t i = 0; i < c->size; i++) {
        const int32_t n = s->count[c->data[i].id];
        if (n == 0) continue;
        float l = c->data[i].logit;
        l = l > 0 ? l / s->p.penalty_repeat : l * s->p.penalty_repeat;
        c->data[i].logit = clamp_logit(clamp_logit(l) - ((float) n * s->p.penalty_freq + s->p.penalty_present));
    }
    logits_changed(c);
}

// --- DRY ---
// How many of the last n tokens follow the newest sequence breaker (n: no breaker among them).
static int32_t tokens_since_breaker(const struct hs_sampler * s, const int32_t * text, int32_t n) {
    for (int32_t start = n - 1; start >= 0; start--) {
        int32_t longest = 0;
        const int32_t * b = s->breakers;
        for (int32_t i = 0; i < s->p.n_dry_breakers; b += s->breaker_len[i], i++) {
            const int32_t len = s->breaker_len[i];
            if (len > longest && len <= n - start && memcmp(text + start, b, (size_t) len * sizeof *b) == 0) longest = len;
        }
        if (longest > 0) return n - start - longest;
    }
    return n;
}

// z[i]: for how many tokens do text[..i] and the whole text agree, read backwards from their ends? (The Z function of the reversed text.)
static void match_lengths(const int32_t * text, int32_t n, int32_t * z) {
#define AT(i) text[n - 1 - (i)]
    int32_t l = 0, r = 0;                                   // reversed text [l, r) is the rightmost stretch known to match its beginning
    for (int32_t i = 1; i < n; i++) {
        int32_t k = i < r ? (z[n - 1 - (i - l)] < r - i ? z[n - 1 - (i - l)] : r - i) : 0;
        while (i + k < n && AT(k) == AT(i + k)) k++;
        if (i + k > r) {
            l = i;
            r = i + k;
        }
        z[n - 1 - i] = k;
    }
#undef AT
}

// A token that would prolong a repetition of length len >= allowed loses multiplier * base ^ (len - allowed).
void hs_step_dry(struct hs_sampler * s) {
    if (!s->dry_len) return;
    const int32_t allowed = s->p.dry_allowed_length;
    int64_t n64 = s->hist_len;
    if (s->p.dry_penalty_last_n >= 0 && n64 > s->p.dry_penalty_last_n) n64 = s->p.dry_penalty_last_n;
    if (n64 <= allowed || n64 > INT32_MAX) return;
    const int32_t n = (int32_t) n64;
    const int32_t * text = s->hist + (s->hist_len - n);
    const int32_t limit = tokens_since_breaker(s, text, n);
    if (limit < allowed) return;

    match_lengths(text, n, s->dry_len);
    for (int32_t i = 0; i + 1 < n; i++) {
        const int32_t len = s->dry_len[i] < limit ? s->dry_len[i] : limit, next = text[i + 1];
        if (len >= allowed && s->dry_best[next] < len + 1) s->dry_best[next] = len + 1;      // + 1: 0 means none
    }
    // base ^ x must stay a finite float
    const float max_exponent = s->p.dry_base > 1.000001f ? 88.72f / logf(s->p.dry_base) : (float) INT32_MAX;
    struct hs_cands * c = &s->cands;
    for (int32_t i = 0; i < c->size; i++) {
        const int32_t len = s->dry_best[c->data[i].id] - 1;
        if (len < 0) continue;
        const float penalty = s->p.dry_multiplier * powf(s->p.dry_base, fminf((float) (len - allowed), max_exponent));
        c->data[i].logit = clamp_logit(c->data[i].logit - penalty);
    }
    for (int32_t i = 0; i + 1 < n; i++) s->dry_best[text[i + 1]] = 0;
    logits_changed(c);
}

// --- history ---
// Room for one more token: move the tail that is still needed to the front, or grow. Grows with the text, so "whole context" costs what it uses.
static int make_room(struct hs_sampler * s, hs_error * err) {
    if (s->hist_len < s->hist_cap) return HS_OK;
    if (s->hist_cap > 0 && s->hist_keep <= s->hist_cap / 2) {
        memmove(s->hist, s->hist + (s->hist_len - s->hist_keep), (size_t) s->hist_keep * sizeof *s->hist);
        s->hist_len = s->hist_keep;
        return HS_OK;
    }
    const int64_t cap = s->hist_cap < 256 ? 512 : s->hist_cap * 2;
    const size_t bytes = (size_t) cap * sizeof *s->hist;
    int32_t * hist = realloc(s->hist, bytes);
    if (!hist) return hs_fail(err, HS_E_MEMORY, "sampler history: cannot allocate %zu bytes", bytes);
    s->hist = hist;
    if (s->dry_len) {
        int32_t * z = realloc(s->dry_len, bytes);
        if (!z) return hs_fail(err, HS_E_MEMORY, "sampler DRY lengths: cannot allocate %zu bytes", bytes);
        s->dry_len = z;
    }
    s->hist_cap = cap;
    return HS_OK;
}

int hs_history_push(struct hs_sampler * s, int32_t token, hs_error * err) {
    HS_TRY(make_room(s, err));
    s->hist[s->hist_len++] = token;
    if (s->count) {
        s->count[token]++;
        const int64_t last_n = s->p.penalty_last_n;
        if (last_n >= 0 && s->hist_len > last_n) s->count[s->hist[s->hist_len - 1 - last_n]]--;
    }
    return HS_OK;
}

void hs_history_clear(struct hs_sampler * s) {
    s->hist_len = 0;
    if (s->count) memset(s->count, 0, (size_t) s->n_vocab * sizeof *s->count);
}
