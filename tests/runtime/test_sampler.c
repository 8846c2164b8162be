// The sampler through its public calls: every step on distributions small enough to work out by hand, the chain's order, drawing, history, bad input.
#include "check.h"
#include "hysparse.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A sampler that does nothing but draw: each test switches on what it is about.
static hs_sampler_params plain(void) {
    hs_sampler_params p = hs_sampler_default_params();
    p.seed = 1;
    p.temp = 1.0f;
    p.top_k = 0;
    p.top_p = 1.0f;
    p.min_p = 0.0f;
    return p;
}

static hs_sampler * make(int32_t n_vocab, const hs_sampler_params * p) {
    hs_sampler * s = NULL;
    hs_error err;
    const int rc = hs_sampler_new(n_vocab, p, &s, &err);
    CHECK(rc == HS_OK && s, "rc %d: %s", rc, err.message);
    return s;
}

static int32_t sample(hs_sampler * s, const float * logits) {
    int32_t t = -1;
    hs_error err;
    const int rc = hs_sampler_sample(s, logits, &t, &err);
    CHECK(rc == HS_OK, "rc %d: %s", rc, err.message);
    return t;
}

// Probabilities in, the distribution that is drawn from out: want_id[i] with want_p[i], most probable first.
static void expect(const char * what, const hs_sampler_params * p, const int32_t * history, int32_t n_history, const float * logits, int32_t n_vocab,
                   const int32_t * want_id, const float * want_p, int32_t n_want) {
    hs_sampler * s = make(n_vocab, p);
    if (!s) return;
    for (int32_t i = 0; i < n_history; i++) CHECK(hs_sampler_accept(s, history[i], NULL) == HS_OK, "%s", what);
    const int32_t t = sample(s, logits);
    int32_t ids[64];
    float probs[64];
    const int32_t n = hs_sampler_candidates(s, ids, probs, 64);
    CHECK(n == n_want, "%s: %d candidates, expected %d", what, n, n_want);
    bool drawn_is_there = false;
    for (int32_t i = 0; i < n && i < n_want; i++) {
        CHECK(ids[i] == want_id[i] && fabsf(probs[i] - want_p[i]) < 2e-6f, "%s: candidate %d is %d with %.7f, expected %d with %.7f", what, i, ids[i],
              probs[i], want_id[i], want_p[i]);
        drawn_is_there |= ids[i] == t;
    }
    CHECK(drawn_is_there, "%s: token %d is no candidate", what, t);
    hs_sampler_free(s);
}

static void logs(const float * p, float * logits, int n) { for (int i = 0; i < n; i++) logits[i] = logf(p[i]); }

#define IDS(...)   ((const int32_t[]) { __VA_ARGS__ })
#define PROBS(...) ((const float[]) { __VA_ARGS__ })

static void test_filters(void) {
    float l[4];
    logs(PROBS(0.1f, 0.2f, 0.3f, 0.4f), l, 4);
    hs_sampler_params p = plain();
    expect("nothing on", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);

    p = plain(), p.top_k = 1;
    expect("top_k 1", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);
    p.top_k = 3;
    expect("top_k 3", &p, NULL, 0, l, 4, IDS(3, 2, 1), PROBS(4.f / 9, 3.f / 9, 2.f / 9), 3);
    p.top_k = 4000;
    expect("top_k over n_vocab", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
    p.top_k = -1;
    expect("top_k -1", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
    p.top_k = 2;
    expect("top_k with ties: the lower id", &p, NULL, 0, PROBS(0, 1, 1, 1), 4, IDS(1, 2), PROBS(0.5f, 0.5f), 2);

    p = plain(), p.top_p = 0.0f;
    expect("top_p 0", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);
    p.top_p = 0.69f;
    expect("top_p 0.69", &p, NULL, 0, l, 4, IDS(3, 2), PROBS(4.f / 7, 3.f / 7), 2);
    p.top_p = 0.8f;
    expect("top_p 0.8", &p, NULL, 0, l, 4, IDS(3, 2, 1), PROBS(4.f / 9, 3.f / 9, 2.f / 9), 3);
    p.top_p = 0.1f, p.min_keep = 3;
    expect("top_p 0.1, min_keep 3", &p, NULL, 0, l, 4, IDS(3, 2, 1), PROBS(4.f / 9, 3.f / 9, 2.f / 9), 3);

    p = plain(), p.min_p = 0.26f;
    expect("min_p 0.26", &p, NULL, 0, l, 4, IDS(3, 2, 1), PROBS(4.f / 9, 3.f / 9, 2.f / 9), 3);
    p.min_p = 0.74f;
    expect("min_p 0.74", &p, NULL, 0, l, 4, IDS(3, 2), PROBS(4.f / 7, 3.f / 7), 2);
    p.min_p = 1.0f;
    expect("min_p 1", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);
    p.min_keep = 2;
    expect("min_p 1, min_keep 2", &p, NULL, 0, l, 4, IDS(3, 2), PROBS(4.f / 7, 3.f / 7), 2);

    // entropy 1.1683: |surprise - entropy| is 0.475 for 0.5, 0.036 for 0.3, 1.134 for 0.1
    float t[4];
    logs(PROBS(0.1f, 0.5f, 0.3f, 0.1f), t, 4);
    p = plain(), p.typ_p = 0.2f;
    expect("typ_p 0.2", &p, NULL, 0, t, 4, IDS(2), PROBS(1), 1);
    p.typ_p = 0.7f;
    expect("typ_p 0.7", &p, NULL, 0, t, 4, IDS(1, 2), PROBS(0.625f, 0.375f), 2);
    p.typ_p = 0.2f, p.min_keep = 3;
    expect("typ_p 0.2, min_keep 3", &p, NULL, 0, t, 4, IDS(1, 2, 0), PROBS(5.f / 9, 3.f / 9, 1.f / 9), 3);

    // mean 1, standard deviation sqrt(3)
    p = plain(), p.top_n_sigma = 1.0f;
    expect("top_n_sigma 1", &p, NULL, 0, PROBS(0, 0, 4, 0), 4, IDS(2), PROBS(1), 1);
    p.top_n_sigma = 3.0f;
    const float e4 = expf(4), z = e4 + 3;
    expect("top_n_sigma 3", &p, NULL, 0, PROBS(0, 0, 4, 0), 4, IDS(2, 0, 1, 3), PROBS(e4 / z, 1 / z, 1 / z, 1 / z), 4);
    p.top_n_sigma = 1.0f;                                   // -inf entries take no part in mean and deviation: (4, 2, 0) has 1.63
    expect("top_n_sigma and -inf", &p, NULL, 0, PROBS(4, -INFINITY, 2, 0), 4, IDS(0), PROBS(1), 1);
    p.top_n_sigma = 1.3f;
    expect("top_n_sigma and -inf", &p, NULL, 0, PROBS(4, -INFINITY, 2, 0), 4, IDS(0, 2), PROBS(0.8807971f, 0.1192029f), 2);

    p = plain(), p.xtc_probability = 1.0f, p.xtc_threshold = 0.25f;
    expect("xtc 0.25", &p, NULL, 0, l, 4, IDS(2, 1, 0), PROBS(3.f / 6, 2.f / 6, 1.f / 6), 3);
    p.xtc_threshold = 0.05f;
    expect("xtc 0.05", &p, NULL, 0, l, 4, IDS(0), PROBS(1), 1);
    p.xtc_threshold = 0.35f;
    expect("xtc 0.35: one over it", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
    p.xtc_threshold = 0.51f;
    expect("xtc over 0.5: off", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
    p.xtc_threshold = 0.05f, p.min_keep = 2;
    expect("xtc and min_keep", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
}

static void test_temperature(void) {
    float l[4];
    logs(PROBS(0.1f, 0.2f, 0.3f, 0.4f), l, 4);
    hs_sampler_params p = plain();
    p.temp = 0.5f;                                          // squares: 0.16 0.09 0.04 0.01 of 0.3
    expect("temp 0.5", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(16.f / 30, 9.f / 30, 4.f / 30, 1.f / 30), 4);
    p.temp = 1e-42f;
    expect("temp near 0", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);

    // two tokens of 0.8 and 0.2: entropy 0.5004024 / ln 2 = 0.7219281; temp in 0 .. 2 * that: 1.4438562
    float two[2];
    logs(PROBS(0.2f, 0.8f), two, 2);
    p = plain(), p.dynatemp_range = 1.0f;
    const float q = 1 / (1 + powf(4, -1 / 1.4438562f));
    expect("dynatemp", &p, NULL, 0, two, 2, IDS(1, 0), PROBS(q, 1 - q), 2);
    p.dynatemp_exponent = 2.0f;
    const float q2 = 1 / (1 + powf(4, -1 / (2 * 0.7219281f * 0.7219281f)));
    expect("dynatemp, exponent 2", &p, NULL, 0, two, 2, IDS(1, 0), PROBS(q2, 1 - q2), 2);
}

static void test_penalties(void) {
    const float flat[4] = { 1, 1, 1, 1 };
    hs_sampler_params p = plain();
    p.penalty_repeat = 2.0f;
    const float h = expf(-0.5f), z = 3 + h;
    expect("repeat, positive logit", &p, IDS(1, 1), 2, flat, 4, IDS(0, 2, 3, 1), PROBS(1 / z, 1 / z, 1 / z, h / z), 4);
    const float g = expf(-1), y = 1 + g;
    expect("repeat, negative logit", &p, IDS(0), 1, PROBS(-1, -1), 2, IDS(1, 0), PROBS(1 / y, g / y), 2);
    p = plain(), p.penalty_freq = 0.5f, p.penalty_present = 1.0f;       // twice: 2, once: 1.5
    const float a = expf(-2), b = expf(-1.5f), x = 2 + a + b;
    expect("frequency and presence", &p, IDS(3, 0, 3), 3, flat, 4, IDS(1, 2, 0, 3), PROBS(1 / x, 1 / x, b / x, a / x), 4);
    p.penalty_last_n = 2;                                   // only 0, 3 count: once each
    const float w = 2 + 2 * b;
    expect("penalty_last_n 2", &p, IDS(3, 0, 3), 3, flat, 4, IDS(1, 2, 0, 3), PROBS(1 / w, 1 / w, b / w, b / w), 4);
    p.penalty_last_n = 0;
    expect("penalty_last_n 0", &p, IDS(3, 0, 3), 3, flat, 4, IDS(0, 1, 2, 3), PROBS(0.25f, 0.25f, 0.25f, 0.25f), 4);

    // A long history: the window forgets, the whole context does not.
    static int32_t text[5000];
    for (int i = 0; i < 5000; i++) text[i] = i == 7 ? 3 : 0;
    p = plain(), p.penalty_present = 1.0f, p.penalty_last_n = -1;
    const float v = 2 + 2 * g;
    expect("penalty_last_n -1", &p, text, 5000, flat, 4, IDS(1, 2, 0, 3), PROBS(1 / v, 1 / v, g / v, g / v), 4);
    p.penalty_last_n = 4992;
    const float u = 3 + g;
    expect("a window just too short", &p, text, 5000, flat, 4, IDS(1, 2, 3, 0), PROBS(1 / u, 1 / u, 1 / u, g / u), 4);
    p.penalty_last_n = 4993;
    expect("a window just long enough", &p, text, 5000, flat, 4, IDS(1, 2, 0, 3), PROBS(1 / v, 1 / v, g / v, g / v), 4);
    p = plain(), p.penalty_repeat = 1e-30f;
    expect("no overflow to inf", &p, IDS(0), 1, PROBS(1e20f, 1, 1, 1), 4, IDS(0), PROBS(1), 1);
}

// Logits 0 everywhere; minus[i] is what DRY took from token i.
static void expect_dry(const char * what, const hs_sampler_params * p, const int32_t * text, int32_t n, const float * minus) {
    hs_sampler * s = make(4, p);
    if (!s) return;
    const float flat[4] = { 0, 0, 0, 0 };
    for (int32_t i = 0; i < n; i++) hs_sampler_accept(s, text[i], NULL);
    for (int round = 0; round < 2; round++) {               // the second: nothing is left over from the first
        sample(s, flat);
        int32_t ids[4];
        float probs[4], by_id[4] = { 0 };
        const int32_t n_cands = hs_sampler_candidates(s, ids, probs, 4);
        for (int i = 0; i < n_cands; i++) by_id[ids[i]] = probs[i];
        float z = 0;
        for (int i = 0; i < 4; i++) z += expf(-minus[i]);
        for (int i = 0; i < 4; i++) CHECK(fabsf(by_id[i] - expf(-minus[i]) / z) < 2e-6f, "%s: token %d has %.6f, expected %.6f", what, i, by_id[i],
                                          expf(-minus[i]) / z);
    }
    hs_sampler_free(s);
}

static void test_dry(void) {
    hs_sampler_params p = plain();
    p.dry_multiplier = 0.5f, p.dry_base = 2.0f, p.dry_allowed_length = 2;
    expect_dry("no repetition", &p, IDS(0, 1, 2, 3), 4, PROBS(0, 0, 0, 0));
    expect_dry("1 of allowed 2", &p, IDS(0, 1, 0), 3, PROBS(0, 0, 0, 0));
    expect_dry("2 of allowed 2", &p, IDS(0, 1, 2, 0, 1), 5, PROBS(0, 0, 0.5f, 0));
    expect_dry("3 of allowed 2", &p, IDS(0, 1, 2, 3, 0, 1, 2), 7, PROBS(0, 0, 0, 1));
    expect_dry("the longest match counts", &p, IDS(3, 0, 1, 2, 0, 1, 2, 3, 0, 1), 10, PROBS(0, 0, 1, 0));
    expect_dry("a loop", &p, IDS(1, 1, 1, 1), 4, PROBS(0, 1, 0, 0));
    p.dry_penalty_last_n = 4;
    expect_dry("out of the window", &p, IDS(0, 1, 2, 0, 1), 5, PROBS(0, 0, 0, 0));
    p.dry_penalty_last_n = 5;
    expect_dry("in the window", &p, IDS(0, 1, 2, 0, 1), 5, PROBS(0, 0, 0.5f, 0));
    p.dry_penalty_last_n = -1;
    static int32_t text[3000];
    for (int i = 0; i < 3000; i++) text[i] = 3;
    text[0] = 0, text[1] = 1, text[2] = 2, text[2998] = 0, text[2999] = 1;
    expect_dry("whole context", &p, text, 3000, PROBS(0, 0, 0.5f, 0));
    p.dry_penalty_last_n = 64;
    p.dry_breakers = IDS(3), p.dry_breaker_len = IDS(1), p.n_dry_breakers = 1;
    expect_dry("a breaker cuts the match", &p, IDS(1, 3, 0, 2, 1, 3, 0), 7, PROBS(0, 0, 0, 0));
    expect_dry("only what follows it counts", &p, IDS(3, 0, 1, 2, 3, 0, 1), 7, PROBS(0, 0, 0.5f, 0));
    p.dry_breakers = IDS(3, 0, 2, 1), p.dry_breaker_len = IDS(2, 2), p.n_dry_breakers = 2;
    expect_dry("a breaker of two tokens", &p, IDS(0, 0, 1, 2, 3, 0, 0, 1), 8, PROBS(0, 0, 0.5f, 0));     // 0 1 after it, not 0 0 1
    p = plain(), p.dry_multiplier = 1.0f, p.dry_base = 1e30f;
    expect_dry("base ^ length stays finite", &p, IDS(1, 1, 1, 1, 1, 1), 6, PROBS(0, 1e30f, 0, 0));
}

static void test_bias(void) {
    hs_sampler_params p = plain();
    p.logit_bias_token = IDS(0, 2), p.logit_bias = PROBS(logf(3), -INFINITY), p.n_logit_bias = 2;
    expect("logit bias", &p, NULL, 0, PROBS(0, 0, 0, -INFINITY), 4, IDS(0, 1), PROBS(0.75f, 0.25f), 2);
    p.temp = 0;
    expect("bias counts when greedy", &p, NULL, 0, PROBS(0, 1, 9, 0), 4, IDS(0), PROBS(1), 1);
}

static void test_order(void) {
    float l[4];
    logs(PROBS(0.1f, 0.2f, 0.3f, 0.4f), l, 4);
    hs_sampler_params p = plain();
    p.temp = 0.5f, p.top_p = 0.5f;
    p.samplers = "tp";                                      // 16/30 reaches 0.5 alone
    expect("temperature, then top_p", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);
    p.samplers = "pt";
    expect("top_p, then temperature", &p, NULL, 0, l, 4, IDS(3, 2), PROBS(16.f / 25, 9.f / 25), 2);
    p.samplers = "";
    expect("no step at all", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(0.4f, 0.3f, 0.2f, 0.1f), 4);
    p.samplers = "tt";
    expect("a step twice", &p, NULL, 0, l, 4, IDS(3, 2, 1, 0), PROBS(256.f / 354, 81.f / 354, 16.f / 354, 1.f / 354), 4);
    p = plain(), p.penalty_present = 10.0f, p.top_k = 1;
    p.samplers = "ke";                                      // penalties after the cut cannot bring others back
    expect("top_k, then penalties", &p, IDS(3), 1, l, 4, IDS(3), PROBS(1), 1);
    p.samplers = "ek";
    expect("penalties, then top_k", &p, IDS(3), 1, l, 4, IDS(2), PROBS(1), 1);
}

static void test_greedy(void) {
    hs_sampler_params p = hs_sampler_default_params();
    p.temp = 0;
    expect("greedy", &p, NULL, 0, PROBS(1, 3, 2, 0), 4, IDS(1), PROBS(1), 1);
    expect("greedy, ties", &p, NULL, 0, PROBS(1, 3, 3, 0), 4, IDS(1), PROBS(1), 1);
    p.xtc_probability = 1;
    p.dynatemp_range = 5;
    p.temp = -1;
    expect("greedy, whatever else is on", &p, NULL, 0, PROBS(1, 3, 3, 0), 4, IDS(1), PROBS(1), 1);
    p.penalty_present = 5;
    expect("penalties count when greedy", &p, IDS(1), 1, PROBS(1, 3, 2, 0), 4, IDS(2), PROBS(1), 1);
    p = hs_sampler_default_params(), p.temp = 0, p.n_probs = 2;
    float l[4];
    logs(PROBS(0.1f, 0.2f, 0.3f, 0.4f), l, 4);
    expect("greedy with n_probs", &p, NULL, 0, l, 4, IDS(3, 2), PROBS(0.4f, 0.3f), 2);
    p.mirostat = 2, p.n_probs = 0;
    expect("greedy beats mirostat", &p, NULL, 0, l, 4, IDS(3), PROBS(1), 1);
}

static void test_draws(void) {
    float l[4];
    const float want[4] = { 0.1f, 0.2f, 0.3f, 0.4f };
    logs(want, l, 4);
    hs_sampler_params p = plain();
    enum { N = 40000 };
    static int32_t first[N];
    hs_sampler * s = make(4, &p);
    int count[4] = { 0 };
    for (int i = 0; i < N; i++) count[first[i] = sample(s, l)]++;
    double chi2 = 0;
    for (int i = 0; i < 4; i++) chi2 += (count[i] - N * want[i]) * (count[i] - N * want[i]) / (N * want[i]);
    CHECK(chi2 < 16.3, "chi-square of 3 degrees of freedom is %.2f (0.1%%: 16.27)", chi2);
    CHECK(hs_sampler_seed(s) == 1, "seed %u", hs_sampler_seed(s));
    hs_sampler_reset(s);
    int same = 0;
    for (int i = 0; i < N; i++) same += sample(s, l) == first[i];
    CHECK(same == N, "after reset %d of %d draws are the same", same, N);
    hs_sampler_free(s);

    // The stream is the same on every platform and in every version: the first draws of seed 1 and of seed 42.
    const int32_t of_1[24]  = { 3, 3, 1, 3, 1, 2, 3, 2, 0, 1, 3, 2, 0, 2, 0, 1, 2, 2, 3, 3, 1, 3, 1, 2 };
    const int32_t of_42[24] = { 3, 2, 3, 3, 3, 2, 1, 3, 1, 3, 2, 3, 3, 0, 2, 2, 1, 0, 2, 2, 1, 3, 3, 2 };
    CHECK(memcmp(first, of_1, sizeof of_1) == 0, "the stream of seed 1 changed");
    p.seed = 42;
    s = make(4, &p);
    for (int i = 0; i < 24; i++) CHECK(sample(s, l) == of_42[i], "the stream of seed 42 changed at %d", i);
    hs_sampler_free(s);

    p.seed = UINT32_MAX;
    hs_sampler * a = make(4, &p), * b = make(4, &p);
    CHECK(hs_sampler_seed(a) != hs_sampler_seed(b), "two random seeds are both %u", hs_sampler_seed(a));
    CHECK(hs_sampler_seed(a) != UINT32_MAX, "the random seed is the mark itself");
    p.seed = hs_sampler_seed(a);
    hs_sampler * c = make(4, &p);
    for (int i = 0; i < 200; i++) CHECK(sample(a, l) == sample(c, l), "draw %d", i);
    hs_sampler_free(a);
    hs_sampler_free(b);
    hs_sampler_free(c);

    // xtc happens as often as it should
    p = plain(), p.xtc_probability = 0.3f, p.xtc_threshold = 0.35f;
    const float equal[2] = { 0, 0 };
    s = make(2, &p);
    int hit = 0;
    for (int i = 0; i < 10000; i++) {
        sample(s, equal);
        int32_t ids[2];
        float probs[2];
        hit += hs_sampler_candidates(s, ids, probs, 2) == 1;
    }
    CHECK(hit > 2850 && hit < 3150, "xtc cut %d of 10000, expected about 3000", hit);
    hs_sampler_free(s);
}

// A big vocabulary: selection by histogram and radix sort against a plain qsort.
static const float * sort_logits;
static int by_logit(const void * a, const void * b) {
    const int32_t x = *(const int32_t *) a, y = *(const int32_t *) b;
    if (sort_logits[x] != sort_logits[y]) return sort_logits[x] > sort_logits[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

static void test_big(void) {
    enum { N = 150001 };
    float * l = malloc(N * sizeof *l), * probs = malloc(N * sizeof *probs);
    int32_t * order = malloc(N * sizeof *order), * ids = malloc(N * sizeof *ids);
    char * picked = malloc(N);
    uint32_t x = 12345;
    for (int kind = 0; kind < 5; kind++) {
        for (int i = 0; i < N; i++) {
            x = x * 1664525u + 1013904223u;
            const float u = (float) (x >> 8) / 16777216.0f;
            l[i] = kind == 0 ? 20 * u - 10 : kind == 1 ? floorf(u * 8) - 4 : kind == 2 ? 3 : kind == 3 ? 16 + u : (u < 0.5f ? -0.0f : 0.0f);
            order[i] = i;
        }
        sort_logits = l;
        qsort(order, N, sizeof *order, by_logit);
        const int32_t ks[] = { 1, 40, 97, 1000, 149999, 0 };
        for (int k = 0; k < 6; k++) {
            hs_sampler_params p = plain();
            p.top_k = ks[k];
            hs_sampler * s = make(N, &p);
            sample(s, l);
            const int32_t want = ks[k] ? ks[k] : N, n = hs_sampler_candidates(s, ids, probs, N);
            CHECK(n == want, "kind %d k %d: %d candidates", kind, ks[k], n);
            memset(picked, 0, N);
            for (int i = 0; i < n; i++) picked[ids[i]] = 1;
            int missing = 0, disorder = 0;
            double sum = 0;
            for (int i = 0; i < n; i++) {
                missing += !picked[order[i]];
                disorder += i > 0 && !(probs[i - 1] > probs[i] || (probs[i - 1] == probs[i] && ids[i - 1] < ids[i]));
                sum += probs[i];
            }
            CHECK(missing == 0, "kind %d k %d: %d of the best are missing", kind, ks[k], missing);
            CHECK(disorder == 0, "kind %d k %d: %d of %d out of order", kind, ks[k], disorder, n);
            CHECK(fabs(sum - 1) < 1e-3, "kind %d k %d: probabilities sum to %.6f", kind, ks[k], sum);
            int32_t few[7];
            float few_p[7];
            const int32_t m = hs_sampler_candidates(s, few, few_p, 7);
            CHECK(m == (want < 7 ? want : 7) && memcmp(few, ids, (size_t) m * sizeof *few) == 0, "kind %d k %d: the first 7 differ", kind, ks[k]);
            hs_sampler_free(s);
        }
    }
    free(l);
    free(probs);
    free(order);
    free(ids);
    free(picked);
}

// A Zipf-like vocabulary: after some draws the mean surprise must be near tau.
static void test_mirostat(void) {
    enum { N = 2000, DRAWS = 3000 };
    static float l[N];
    for (int i = 0; i < N; i++) l[i] = -1.1f * logf((float) (i + 1));
    for (int version = 1; version <= 2; version++) {
        for (int tau = 3; tau <= 5; tau += 2) {
            hs_sampler_params p = plain();
            p.mirostat = version, p.mirostat_tau = (float) tau, p.mirostat_eta = 0.1f;
            p.top_k = 1;                                    // not part of mirostat's chain
            hs_sampler * s = make(N, &p);
            double surprise = 0;
            for (int i = 0; i < DRAWS; i++) {
                const int32_t t = sample(s, l);
                static int32_t ids[N];
                static float probs[N];
                const int32_t n = hs_sampler_candidates(s, ids, probs, N);
                for (int k = 0; k < n; k++) {
                    if (ids[k] == t) surprise -= log2(probs[k]);
                }
            }
            surprise /= DRAWS;
            CHECK(fabs(surprise - tau) < 0.15, "mirostat %d: mean surprise %.3f bits, tau %d", version, surprise, tau);
            hs_sampler_reset(s);
            hs_sampler * fresh = make(N, &p);
            for (int i = 0; i < 50; i++) CHECK(sample(s, l) == sample(fresh, l), "mirostat %d after reset, draw %d", version, i);
            hs_sampler_free(fresh);
            hs_sampler_free(s);
        }
        const float flat[8] = { 0 };                        // no Zipf exponent to estimate
        hs_sampler_params p = plain();
        p.mirostat = version;
        hs_sampler * s = make(8, &p);
        for (int i = 0; i < 100; i++) sample(s, flat);
        hs_sampler_free(s);
        s = make(1, &p);
        CHECK(sample(s, flat) == 0, "one token");
        hs_sampler_free(s);
    }
    hs_sampler_params p = plain();                          // mu starts at 2 tau = 4 bits: tokens of 1/16 or more stay
    p.mirostat = 2, p.mirostat_tau = 2;
    float h[4];
    logs(PROBS(0.55f, 0.30f, 0.10f, 0.05f), h, 4);
    expect("mirostat 2's cut", &p, NULL, 0, h, 4, IDS(0, 1, 2), PROBS(0.55f / 0.95f, 0.30f / 0.95f, 0.10f / 0.95f), 3);
}

static void refuse(const char * name, const hs_sampler_params * p) {
    hs_sampler * s = (hs_sampler *) &n_checks;
    hs_error err = { 0, "" };
    const int rc = hs_sampler_new(8, p, &s, &err);
    CHECK(rc == HS_E_ARG && err.code == HS_E_ARG, "%s: rc %d", name, rc);
    CHECK(strncmp(err.message, name, strlen(name)) == 0 && strstr(err.message, "found") && strstr(err.message, "expected"), "%s: message \"%s\"",
          name, err.message);
    CHECK(s == (hs_sampler *) &n_checks, "%s: a failed call changed *out", name);
}

static void test_bad_params(void) {
    const size_t floats[] = {
        offsetof(hs_sampler_params, temp), offsetof(hs_sampler_params, dynatemp_range), offsetof(hs_sampler_params, dynatemp_exponent),
        offsetof(hs_sampler_params, top_p), offsetof(hs_sampler_params, min_p), offsetof(hs_sampler_params, typ_p),
        offsetof(hs_sampler_params, top_n_sigma), offsetof(hs_sampler_params, xtc_probability), offsetof(hs_sampler_params, xtc_threshold),
        offsetof(hs_sampler_params, penalty_repeat), offsetof(hs_sampler_params, penalty_freq), offsetof(hs_sampler_params, penalty_present),
        offsetof(hs_sampler_params, dry_multiplier), offsetof(hs_sampler_params, dry_base), offsetof(hs_sampler_params, mirostat_tau),
        offsetof(hs_sampler_params, mirostat_eta),
    };
    const char * names[] = { "temp", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typ_p", "top_n_sigma", "xtc_probability",
                             "xtc_threshold", "penalty_repeat", "penalty_freq", "penalty_present", "dry_multiplier", "dry_base", "mirostat_tau",
                             "mirostat_eta" };
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        const float bad[] = { NAN, INFINITY, -INFINITY };
        for (int k = 0; k < 3; k++) {
            hs_sampler_params p = plain();
            memcpy((char *) &p + floats[i], &bad[k], sizeof(float));
            refuse(names[i], &p);
        }
    }
    hs_sampler_params p;
#define REFUSE(field, value) (p = plain(), p.field = (value), refuse(#field, &p))
    REFUSE(n_prev, -1);
    REFUSE(n_probs, -1);
    REFUSE(min_keep, INT32_MIN);
    REFUSE(top_p, 1.5f);
    REFUSE(min_p, -0.1f);
    REFUSE(typ_p, 2.0f);
    REFUSE(xtc_threshold, 1.1f);
    REFUSE(penalty_repeat, 0.0f);
    REFUSE(penalty_repeat, -1.0f);
    REFUSE(penalty_last_n, -2);
    REFUSE(dry_penalty_last_n, INT32_MIN);
    REFUSE(dry_allowed_length, -1);
    REFUSE(dry_allowed_length, INT32_MIN);                  // CVE-2026-43628's kind
    REFUSE(mirostat, 3);
    REFUSE(mirostat, -1);
    REFUSE(samplers, "edq");
    REFUSE(samplers, "k;p");
    REFUSE(samplers, "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk");
    REFUSE(n_logit_bias, -1);
    REFUSE(n_dry_breakers, -5);
    p = plain(), p.n_logit_bias = 1;
    refuse("logit_bias", &p);
    p = plain(), p.n_dry_breakers = 1;
    refuse("dry_breakers", &p);
    p = plain(), p.n_logit_bias = 1, p.logit_bias_token = IDS(8), p.logit_bias = PROBS(1);
    refuse("logit_bias_token[0]", &p);
    p.logit_bias_token = IDS(7), p.logit_bias = PROBS(NAN);
    refuse("logit_bias[0]", &p);
    p.logit_bias = PROBS(INFINITY);
    refuse("logit_bias[0]", &p);
    p = plain(), p.n_dry_breakers = 2, p.dry_breakers = IDS(1, 2, 8), p.dry_breaker_len = IDS(1, 2);
    refuse("dry_breakers[2]", &p);
    p.dry_breaker_len = IDS(1, -1);
    refuse("dry_breaker_len[1]", &p);
    p.dry_breaker_len = IDS(0, 1);
    refuse("dry_breaker_len[0]", &p);

    hs_sampler * s = NULL;
    hs_error err;
    CHECK(hs_sampler_new(0, NULL, &s, &err) == HS_E_ARG && strstr(err.message, "n_vocab"), "%s", err.message);
    CHECK(hs_sampler_new(-3, NULL, &s, NULL) == HS_E_ARG, "err may be NULL");
    CHECK(hs_sampler_new(4, NULL, NULL, &err) == HS_E_ARG, "%s", err.message);
}

static void test_bad_calls(void) {
    hs_sampler_params p = plain();
    p.penalty_last_n = INT32_MAX, p.penalty_present = 1, p.dry_multiplier = 1, p.dry_penalty_last_n = INT32_MAX, p.dry_allowed_length = INT32_MAX;
    hs_sampler * s = make(4, &p);                           // legal, and must not allocate by these numbers
    hs_error err;
    int32_t t = 77, ids[4];
    float probs[4];
    CHECK(hs_sampler_candidates(s, ids, probs, 4) == 0, "candidates before the first sample");
    CHECK(hs_sampler_sample(s, PROBS(0, NAN, 0, 0), &t, &err) == HS_E_ARG && strstr(err.message, "logits[1]"), "%s", err.message);
    CHECK(hs_sampler_sample(s, PROBS(0, 0, 0, INFINITY), &t, &err) == HS_E_ARG && strstr(err.message, "logits[3]"), "%s", err.message);
    CHECK(hs_sampler_sample(s, PROBS(-INFINITY, -INFINITY, -INFINITY, -INFINITY), &t, &err) == HS_E_ARG && strstr(err.message, "-inf"), "%s",
          err.message);
    CHECK(hs_sampler_sample(s, NULL, &t, &err) == HS_E_ARG, "%s", err.message);
    CHECK(hs_sampler_sample(s, PROBS(0, 0, 0, 0), NULL, &err) == HS_E_ARG, "%s", err.message);
    CHECK(t == 77, "a failed call wrote the token");
    CHECK(hs_sampler_accept(s, 4, &err) == HS_E_ARG && strstr(err.message, "found 4"), "%s", err.message);
    CHECK(hs_sampler_accept(s, -1, &err) == HS_E_ARG && strstr(err.message, "found -1"), "%s", err.message);
    for (int i = 0; i < 3000; i++) CHECK(hs_sampler_accept(s, i & 3, NULL) == HS_OK, "accept %d", i);
    CHECK(sample(s, PROBS(-INFINITY, 0, -INFINITY, -INFINITY)) == 1, "the only token");
    CHECK(hs_sampler_candidates(s, ids, probs, 0) == 0, "n_max 0");
    hs_sampler_free(s);
    hs_sampler_free(NULL);

    p = plain(), p.n_prev = 0;                              // no history is wanted at all
    s = make(4, &p);
    for (int i = 0; i < 3000; i++) CHECK(hs_sampler_accept(s, i & 3, NULL) == HS_OK, "accept %d", i);
    hs_sampler_free(s);
}

// Everything on at once over random logits: finds memory errors under sanitizers, and the result is always a distribution.
static void test_everything(void) {
    enum { N = 997 };
    static float l[N], probs[N];
    static int32_t ids[N];
    uint32_t x = 7;
    const char * orders[] = { "edskypmxt", "txmpyksde", "yepdmskxt", "ktktktk", "xexdxsx", "dmye" };
    for (int round = 0; round < 60; round++) {
        hs_sampler_params p = hs_sampler_default_params();
        p.seed = (uint32_t) round, p.samplers = orders[round % 6], p.mirostat = round % 10 == 9 ? 1 : round % 10 == 8 ? 2 : 0;
        p.typ_p = 0.9f, p.top_n_sigma = 3, p.xtc_probability = 0.5f, p.xtc_threshold = 0.02f, p.dynatemp_range = (float) (round % 3) * 0.3f;
        p.penalty_repeat = 1.2f, p.penalty_freq = 0.1f, p.penalty_present = 0.1f, p.penalty_last_n = round % 4 == 0 ? -1 : 50;
        p.dry_multiplier = 0.8f, p.dry_penalty_last_n = round % 5 == 0 ? -1 : 70, p.min_keep = round % 7;
        p.top_k = round % 2 ? 40 : 0;
        p.dry_breakers = IDS(5, 6, 7), p.dry_breaker_len = IDS(1, 2), p.n_dry_breakers = 2;
        hs_sampler * s = make(N, &p);
        for (int i = 0; i < 300; i++) {
            for (int k = 0; k < N; k++) {
                x = x * 1664525u + 1013904223u;
                l[k] = (x >> 8) % 50 == 0 ? -INFINITY : (float) (x >> 8) / 16777216.0f * 12 - 6 + (k < 20 ? 5 : 0);
            }
            const int32_t t = sample(s, l);
            const int32_t n = hs_sampler_candidates(s, ids, probs, N);
            double sum = 0;
            bool there = false;
            for (int k = 0; k < n; k++) sum += probs[k], there |= ids[k] == t;
            CHECK(n >= 1 && there && fabs(sum - 1) < 1e-4, "round %d: %d candidates, sum %.6f", round, n, sum);
            hs_sampler_accept(s, t, NULL);
        }
        hs_sampler_free(s);
    }
}

int main(void) {
    test_filters();
    test_temperature();
    test_penalties();
    test_dry();
    test_bias();
    test_order();
    test_greedy();
    test_draws();
    test_big();
    test_mirostat();
    test_bad_params();
    test_bad_calls();
    test_everything();
    printf("sampler: %d checks, %d failed\n", n_checks, n_failed);
    return n_failed != 0;
}
