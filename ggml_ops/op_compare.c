// Comparison with the reference: NMSE (SPEC 8), finite everywhere, block scores, selections as sets, guards.
#include "op_compare.h"

#include <math.h>
#include <stdio.h>

static double nmse(double error, double norm) {
    return norm > 0.0 ? error / norm : error > 0.0 ? INFINITY : 0.0; // a reference of zeros allows zeros only
}

static bool compare_out(const struct hs_inputs * in, bool cpu, const struct hs_case_result * got, const struct hs_case_result * ref,
    struct hs_errors * worst, char * why, size_t size) {
    double error = 0.0, norm = 0.0;
    for (int64_t i = 0; i < ref->n_out; i++) {
        if (!isfinite(got->out[i])) {
            snprintf(why, size, "out[%lld] = %g (reference %g): not finite", (long long) i, (double) got->out[i], (double) ref->out[i]);
            return false;
        }
        const double d = (double) got->out[i] - ref->out[i];
        error += d * d;
        norm += (double) ref->out[i] * ref->out[i];
    }
    const double e = nmse(error, norm), limit = hs_case_tolerance(&in->c, cpu);
    worst->out = e > worst->out ? e : worst->out;
    if (e > limit) {
        snprintf(why, size, "out: NMSE %.3g, allowed %.3g", e, limit);
        return false;
    }
    return true;
}

// How far two scores may be apart: SPEC 8's 1e-3, times the spacing of f32 where logits are about 1e4. GPU kernels round queries (and q8_0 keys) to f16,
// which moves the largest logits, about 5, by up to half a unit of f16 (2e-3), as every attention kernel on tensor cores does.
static double score_slack(const struct hs_inputs * in, bool cpu) {
    return in->c.data == HS_DATA_HUGE || in->c.data == HS_DATA_LOW ? 2e-2 : cpu ? 1e-3 : 4e-3;
}

static bool compare_scores(const struct hs_inputs * in, bool cpu, const struct hs_case_result * got, const struct hs_case_result * ref,
    struct hs_errors * worst, char * why, size_t size) {
    double error = 0.0, norm = 0.0;
    for (int64_t row = 0; row < (int64_t) in->n_tokens * in->c.n_head_kv; row++) {
        const int n_visible = in->pos_seq[row / in->c.n_head_kv] / in->c.block + 1;
        for (int b = 0; b < n_visible; b++) {
            const double x = got->scores[row * in->n_blocks + b], y = ref->scores[row * in->n_blocks + b];
            if (!isfinite(x) || fabs(x - y) > score_slack(in, cpu)) {
                snprintf(why, size, "score of block %d in row %lld: found %g, expected %g", b, (long long) row, x, y);
                return false;
            }
            error += (x - y) * (x - y);
            norm += y * y;
        }
    }
    // One visible block with one key has the score log 1 = 0 for certain, so the norm gets a floor.
    const double e = error / (norm + 1e-3), limit = hs_case_tolerance(&in->c, cpu);
    worst->scores = e > worst->scores ? e : worst->scores;
    if (e > limit) {
        snprintf(why, size, "scores: NMSE %.3g, allowed %.3g", e, limit);
        return false;
    }
    return true;
}

static bool contains(const int32_t * sel, int n, int32_t block) {
    for (int i = 0; i < n; i++) {
        if (sel[i] == block) {
            return true;
        }
    }
    return false;
}

// Selections as sets. `scores` (of the reference) may excuse a block; NULL: the inputs were the same bits, so nothing does.
static bool compare_selection(const struct hs_inputs * in, bool cpu, const struct hs_case_result * got, const struct hs_case_result * ref, const float * scores,
    char * why, size_t size) {
    const int k = in->c.top_k;
    for (int64_t row = 0; row < ref->n_sel / k; row++) {
        const int32_t * x = got->sel + row * k, * y = ref->sel + row * k;
        const int n_visible = in->pos_seq[row / in->c.n_head_kv] / in->c.block + 1, n = n_visible < k ? n_visible : k;
        double weakest = INFINITY;
        for (int i = 0; i < k; i++) {
            if (i < n ? x[i] < 0 || x[i] >= n_visible || (i > 0 && x[i] <= x[i - 1]) : x[i] != HS_BLOCK_NONE) {
                snprintf(why, size, "selection row %lld: entry %d is %d (%d blocks visible, ascending, then %d)", (long long) row, i, (int) x[i],
                    n_visible, HS_BLOCK_NONE);
                return false;
            }
            weakest = i < n && scores ? fmin(weakest, scores[row * in->n_blocks + y[i]]) : weakest;
        }
        for (int i = 0; i < n; i++) {
            if (!contains(y, n, x[i]) && !(scores && fabs(scores[row * in->n_blocks + x[i]] - weakest) < score_slack(in, cpu))) {
                snprintf(why, size, "selection row %lld: block %d is not among the reference's", (long long) row, (int) x[i]);
                return false;
            }
        }
    }
    return true;
}

bool hs_compare(const struct hs_inputs * in, bool cpu, const struct hs_case_result * got, const struct hs_case_result * ref,
    struct hs_errors * worst, char * why, size_t size) {
    if (got->bad_guard >= 0) {
        snprintf(why, size, "guard %d (%s the node) was overwritten", got->bad_guard, got->bad_guard ? "behind" : "before");
        return false;
    }
    if (ref->out && !compare_out(in, cpu, got, ref, worst, why, size)) {
        return false;
    }
    if (ref->scores && !compare_scores(in, cpu, got, ref, worst, why, size)) {
        return false;
    }
    return !ref->sel || compare_selection(in, cpu, got, ref, ref->scores, why, size);
}

bool hs_plant(const struct hs_inputs * in, enum hs_plant kind, struct hs_case_result * r) {
    double norm = 0.0;
    switch (kind) {
        case HS_PLANT_VALUE: // one element off by 1 % of the whole result's norm: NMSE 1e-4
            if (!r->out) {
                return false;
            }
            for (int64_t i = 0; i < r->n_out; i++) {
                norm += (double) r->out[i] * r->out[i];
            }
            r->out[r->n_out / 2] += (float) (0.01 * sqrt(norm)) + (norm > 0.0 ? 0.0f : 1e-6f);
            return true;
        case HS_PLANT_NAN:
            if (r->out) {
                r->out[r->n_out - 1] = NAN;
            }
            return r->out != NULL;
        case HS_PLANT_SCORE:
            if (r->scores) {
                r->scores[0] += 0.03f;
            }
            return r->scores != NULL;
        case HS_PLANT_SELECTION: // the best block of the first row gives way to one outside; only select_blocks knows for certain that this is wrong
            if (!r->sel || r->scores || in->pos_seq[0] / in->c.block + 1 <= in->c.top_k) {
                return false;
            }
            for (int i = 0, want = 0; i < in->c.top_k; i++, want++) {
                if (r->sel[i] != want) {
                    r->sel[i] = want;
                    return true;
                }
            }
            r->sel[in->c.top_k - 1]++;
            return true;
        case HS_PLANT_REPEAT:
            if (!r->sel || in->c.top_k < 2 || r->sel[1] < 0) {
                return false;
            }
            r->sel[1] = r->sel[0];
            return true;
        case HS_PLANT_GUARD:
            r->bad_guard = 1;
            return true;
        case HS_PLANT_COUNT:
            break;
    }
    return false;
}

const char * hs_plant_name(enum hs_plant kind) {
    static const char * names[] = { "wrong value", "NaN", "wrong score", "wrong block", "repeated block", "guard" };
    return names[kind];
}
