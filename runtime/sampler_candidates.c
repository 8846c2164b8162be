// The candidate list of the sampler: ordering, selection, softmax, drawing; and the random numbers behind the draw.
//
// Everything is linear in the number of candidates and allocates nothing, because it runs once a token over vocabularies of 150k entries.
#include "sampler_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

// --- random numbers ---
static uint64_t splitmix64(uint64_t * x) {
    uint64_t z = *x += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

void hs_rng_seed(struct hs_rng * r, uint32_t seed) {
    uint64_t x = seed;
    for (int i = 0; i < 4; i++) r->s[i] = splitmix64(&x);
}

static uint64_t rotl(uint64_t x, int n) { return (x << n) | (x >> (64 - n)); }

// xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators").
static uint64_t rng_next(struct hs_rng * r) {
    uint64_t * s = r->s;
    const uint64_t out = rotl(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return out;
}

double hs_rng_uniform(struct hs_rng * r) { return (double) (rng_next(r) >> 11) * 0x1.0p-53; }

uint32_t hs_rng_random_seed(void) {
    uint64_t x = 0;
    FILE * f = fopen("/dev/urandom", "rb");
    const bool got = f && fread(&x, sizeof x, 1, f) == 1;
    if (f) fclose(f);
    if (!got) {
        struct timespec t = { 0, 0 };
        timespec_get(&t, TIME_UTC);
        x = (uint64_t) t.tv_sec * UINT64_C(1000000007) ^ (uint64_t) t.tv_nsec << 20 ^ (uint64_t) (uintptr_t) &x;
    }
    const uint32_t seed = (uint32_t) (splitmix64(&x) >> 32);
    return seed == UINT32_MAX ? 0 : seed;
}

// --- order ---
// An unsigned key that sorts like "logit descending"; -0 and +0 share one.
static uint32_t key_of(float logit) {
    const float l = logit == 0.0f ? 0.0f : logit;
    uint32_t u;
    memcpy(&u, &l, sizeof u);
    return (u >> 31) ? u : u ^ UINT32_C(0x7FFFFFFF);
}

static bool before(const struct hs_cand * a, const struct hs_cand * b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void insertion_sort(struct hs_cand * a, int32_t n) {
    for (int32_t i = 1; i < n; i++) {
        const struct hs_cand x = a[i];
        int32_t j = i;
        for (; j > 0 && before(&x, &a[j - 1]); j--) a[j] = a[j - 1];
        a[j] = x;
    }
}

#define DIGIT_BITS 11
#define DIGITS     (1 << DIGIT_BITS)

// One stable counting pass over an 11-bit digit, of the id (by_id) or of the key.
static void radix_pass(const struct hs_cand * from, struct hs_cand * to, int32_t n, bool by_id, int shift) {
    int32_t start[DIGITS] = { 0 };
#define DIGIT(c) (((by_id ? (uint32_t) (c).id : key_of((c).logit)) >> shift) & (DIGITS - 1))
    for (int32_t i = 0; i < n; i++) start[DIGIT(from[i])]++;
    int32_t sum = 0;
    for (int d = 0; d < DIGITS; d++) {
        const int32_t c = start[d];
        start[d] = sum;
        sum += c;
    }
    for (int32_t i = 0; i < n; i++) to[start[DIGIT(from[i])]++] = from[i];
#undef DIGIT
}

struct hs_cand * hs_cand_sort(struct hs_cand * data, struct hs_cand * tmp, int32_t n, bool id_ordered) {
    if (n <= 96) {
        insertion_sort(data, n);
        return data;
    }
    // least significant digit first: the ids (unless they are in order already), then the logits
    for (int pass = id_ordered ? 3 : 0; pass < 6; pass++) {
        radix_pass(data, tmp, n, pass < 3, (pass % 3) * DIGIT_BITS);
        struct hs_cand * t = data;
        data = tmp;
        tmp = t;
    }
    return data;
}

void hs_cands_sort(struct hs_cands * c) {
    if (c->sorted) return;
    struct hs_cand * r = hs_cand_sort(c->data, c->scratch, c->size, c->id_ordered);
    if (r != c->data) {
        c->scratch = c->data;
        c->data = r;
    }
    c->sorted = true;
    c->id_ordered = c->size <= 1;
}

// First a histogram of the keys' top bits drops everything that is certainly not among the best k, then the few that are left are sorted.
void hs_cands_select(struct hs_cands * c, int32_t k) {
    if (!c->sorted && k < c->size && c->size > 96) {
        enum { TOP_BITS = 12 };
        int32_t hist[1 << TOP_BITS] = { 0 };
        for (int32_t i = 0; i < c->size; i++) hist[key_of(c->data[i].logit) >> (32 - TOP_BITS)]++;
        uint32_t last = 0;                                  // the bucket of the k-th best
        for (int32_t sum = hist[0]; sum < k; sum += hist[last]) last++;
        int32_t n = 0;
        for (int32_t i = 0; i < c->size; i++) {
            if (key_of(c->data[i].logit) >> (32 - TOP_BITS) <= last) c->data[n++] = c->data[i];
        }
        c->size = n;
    }
    hs_cands_sort(c);
    if (k < c->size) c->size = k;
}

// --- probabilities ---
float hs_cands_max(const struct hs_cands * c) {
    if (c->sorted) return c->data[0].logit;
    float max = c->data[0].logit;
    for (int32_t i = 1; i < c->size; i++) {
        if (c->data[i].logit > max) max = c->data[i].logit;
    }
    return max;
}

void hs_cands_softmax(struct hs_cands * c) {
    const float max = hs_cands_max(c);
    double sum = 0;
    for (int32_t i = 0; i < c->size; i++) {
        c->data[i].p = expf(c->data[i].logit - max);
        sum += c->data[i].p;
    }
    const float scale = (float) (1.0 / sum);
    for (int32_t i = 0; i < c->size; i++) c->data[i].p *= scale;
}

int32_t hs_cands_draw(const struct hs_cands * c, struct hs_rng * r) {
    double sum = 0;
    for (int32_t i = 0; i < c->size; i++) sum += c->data[i].p;
    const double target = hs_rng_uniform(r) * sum;
    double cum = 0;
    int32_t last = 0;                                       // rounding may leave target at the very end: the last with p > 0 then
    for (int32_t i = 0; i < c->size; i++) {
        if (c->data[i].p <= 0) continue;
        cum += c->data[i].p;
        last = i;
        if (cum > target) break;
    }
    return last;
}
