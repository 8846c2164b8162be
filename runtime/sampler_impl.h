// Inside of the sampler: the candidate list that the chain narrows, the random state, and the steps. Public calls: hysparse.h.
//
// Semantics, names and order are llama.cpp's (its `samplers` chain); differences are named at the step.
#pragma once

#include "hysparse.h"

#define HS_SAMPLERS_DEFAULT "edskypmxt"
#define HS_SAMPLERS_MAX     32             // letters in an order string (a step may stand there twice)

// --- random numbers: xoshiro256++ seeded by splitmix64; the same stream on every platform ---
struct hs_rng { uint64_t s[4]; };
void     hs_rng_seed(struct hs_rng * r, uint32_t seed);
double   hs_rng_uniform(struct hs_rng * r);                      // [0, 1), 53 bits
uint32_t hs_rng_random_seed(void);                               // never 0xFFFFFFFF

// --- candidates ---
struct hs_cand { int32_t id; float logit; float p; };            // p is valid after hs_cands_softmax

struct hs_cands {
    struct hs_cand * data, * scratch;    // n_vocab entries each; sorting may swap the two
    struct hs_cand * aux;                // n_vocab entries where typ_p is on, else NULL
    int32_t          size;
    bool             sorted;             // by logit, descending; equal logits by token id
    bool             id_ordered;         // by token id, ascending (as built)
};

// Sort data[0..n) by logit descending, ties by id ascending, using tmp[0..n). Returns the one that holds the result. O(n), no allocation.
struct hs_cand * hs_cand_sort(struct hs_cand * data, struct hs_cand * tmp, int32_t n, bool id_ordered);

void  hs_cands_sort(struct hs_cands * c);
void  hs_cands_select(struct hs_cands * c, int32_t k);           // keep the k best, sorted; O(n) plus the sort of what is left
float hs_cands_max(const struct hs_cands * c);
void  hs_cands_softmax(struct hs_cands * c);                     // fills p; does not change the order
int32_t hs_cands_draw(const struct hs_cands * c, struct hs_rng * r);   // index drawn from p (must be filled)

// --- the sampler ---
struct hs_sampler {
    hs_sampler_params p;                 // its pointers are NULL or point to the copies below
    int32_t n_vocab;
    uint32_t seed;
    struct hs_rng rng;
    struct hs_cands cands;
    bool drawn;                          // cands holds the distribution of the last sample

    int32_t * bias_token; float * bias;
    int32_t * breakers, * breaker_len;
    char order[HS_SAMPLERS_MAX + 1];

    // History, the newest token last. hist_keep: how many tokens some step can still look at (INT64_MAX: all).
    int32_t * hist; int64_t hist_len, hist_cap, hist_keep;
    int32_t * count;                     // [n_vocab] occurrences among the last penalty_last_n tokens; NULL where penalties are off
    int32_t * dry_len;                   // [hist_cap] match lengths; NULL where DRY is off
    int32_t * dry_best;                  // [n_vocab] longest match a token would go on with, 0 between calls
    float mu;                            // mirostat's running bound
};

int  hs_sampler_check(int32_t n_vocab, const hs_sampler_params * p, hs_error * err);     // sampler_params.c
bool hs_sampler_penalties_on(const hs_sampler_params * p);
bool hs_sampler_dry_on(const hs_sampler_params * p);

void hs_step_penalties(struct hs_sampler * s);                   // sampler_penalties.c
void hs_step_dry(struct hs_sampler * s);
int  hs_history_push(struct hs_sampler * s, int32_t token, hs_error * err);
void hs_history_clear(struct hs_sampler * s);

void hs_step_top_k(struct hs_cands * c, int32_t k);              // sampler_filters.c
void hs_step_top_p(struct hs_cands * c, float p, int32_t min_keep);
void hs_step_min_p(struct hs_cands * c, float p, int32_t min_keep);
void hs_step_typ_p(struct hs_cands * c, float p, int32_t min_keep);
void hs_step_top_n_sigma(struct hs_cands * c, float n);
void hs_step_xtc(struct hs_cands * c, float probability, float threshold, int32_t min_keep, struct hs_rng * r);
void hs_step_temp(struct hs_cands * c, float temp, float range, float exponent);

int32_t hs_mirostat_v1(struct hs_sampler * s);                   // sampler_mirostat.c: index of the drawn candidate
int32_t hs_mirostat_v2(struct hs_sampler * s);
