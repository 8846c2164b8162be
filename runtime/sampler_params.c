// The sampler's parameters: defaults (llama.cpp's) and the check of every value before anything uses it.
#include "sampler_impl.h"
#include "status.h"

#include <float.h>
#include <math.h>
#include <string.h>

hs_sampler_params hs_sampler_default_params(void) {
    return (hs_sampler_params) {
        .seed = UINT32_MAX, .n_prev = 64, .n_probs = 0, .min_keep = 0,
        .temp = 0.8f, .dynatemp_range = 0.0f, .dynatemp_exponent = 1.0f,
        .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .typ_p = 1.0f, .top_n_sigma = -1.0f,
        .xtc_probability = 0.0f, .xtc_threshold = 0.1f,
        .penalty_last_n = 64, .penalty_repeat = 1.0f, .penalty_freq = 0.0f, .penalty_present = 0.0f,
        .dry_multiplier = 0.0f, .dry_base = 1.75f, .dry_allowed_length = 2, .dry_penalty_last_n = 64,
        .mirostat = 0, .mirostat_tau = 5.0f, .mirostat_eta = 0.1f,
    };
}

static bool has(const char * order, char letter) { return strchr(order ? order : HS_SAMPLERS_DEFAULT, letter) != NULL; }

bool hs_sampler_penalties_on(const hs_sampler_params * p) {
    return p->penalty_last_n != 0 && (p->penalty_repeat != 1.0f || p->penalty_freq != 0.0f || p->penalty_present != 0.0f) && has(p->samplers, 'e');
}

bool hs_sampler_dry_on(const hs_sampler_params * p) {
    return p->dry_multiplier > 0.0f && p->dry_base >= 1.0f && p->dry_penalty_last_n != 0 && has(p->samplers, 'd');
}

static int check_order(const char * order, hs_error * err) {
    const size_t n = strlen(order);
    if (n > HS_SAMPLERS_MAX) return hs_fail(err, HS_E_ARG, "samplers: found %zu letters, expected at most %d", n, HS_SAMPLERS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!strchr(HS_SAMPLERS_DEFAULT, order[i])) {
            return hs_fail(err, HS_E_ARG, "samplers: found letter '%c' (0x%02x) at %zu, expected letters of \"" HS_SAMPLERS_DEFAULT "\"",
                           order[i] > 32 && order[i] < 127 ? order[i] : '?', (unsigned char) order[i], i);
        }
    }
    return HS_OK;
}

static int check_bias(int32_t n_vocab, const hs_sampler_params * p, hs_error * err) {
    if (p->n_logit_bias < 0) return hs_fail(err, HS_E_ARG, "n_logit_bias: found %d, expected 0 or more", p->n_logit_bias);
    if (p->n_logit_bias > 0 && (!p->logit_bias_token || !p->logit_bias)) {
        return hs_fail(err, HS_E_ARG, "logit_bias: found a null pointer, expected %d tokens and values", p->n_logit_bias);
    }
    for (int32_t i = 0; i < p->n_logit_bias; i++) {
        const int32_t t = p->logit_bias_token[i];
        if (t < 0 || t >= n_vocab) return hs_fail(err, HS_E_ARG, "logit_bias_token[%d]: found %d, expected 0 to %d", i, t, n_vocab - 1);
        if (isnan(p->logit_bias[i]) || p->logit_bias[i] > FLT_MAX) {
            return hs_fail(err, HS_E_ARG, "logit_bias[%d] (token %d): found %g, expected a finite number or -inf", i, t, p->logit_bias[i]);
        }
    }
    return HS_OK;
}

static int check_breakers(int32_t n_vocab, const hs_sampler_params * p, hs_error * err) {
    if (p->n_dry_breakers < 0) return hs_fail(err, HS_E_ARG, "n_dry_breakers: found %d, expected 0 or more", p->n_dry_breakers);
    if (p->n_dry_breakers > 0 && (!p->dry_breakers || !p->dry_breaker_len)) {
        return hs_fail(err, HS_E_ARG, "dry_breakers: found a null pointer, expected %d token sequences", p->n_dry_breakers);
    }
    int64_t at = 0;
    for (int32_t i = 0; i < p->n_dry_breakers; i++) {
        const int32_t len = p->dry_breaker_len[i];
        if (len < 1 || len > 1024) return hs_fail(err, HS_E_ARG, "dry_breaker_len[%d]: found %d, expected 1 to 1024", i, len);
        for (int32_t j = 0; j < len; j++, at++) {
            const int32_t t = p->dry_breakers[at];
            if (t < 0 || t >= n_vocab) {
                return hs_fail(err, HS_E_ARG, "dry_breakers[%lld] (sequence %d): found %d, expected 0 to %d", (long long) at, i, t, n_vocab - 1);
            }
        }
    }
    return HS_OK;
}

int hs_sampler_check(int32_t n_vocab, const hs_sampler_params * p, hs_error * err) {
    if (n_vocab < 1) return hs_fail(err, HS_E_ARG, "n_vocab: found %d, expected 1 or more", n_vocab);
    const struct { const char * name; int32_t value, min, max; } ints[] = {
        { "n_prev",             p->n_prev,              0, INT32_MAX },
        { "n_probs",            p->n_probs,             0, INT32_MAX },
        { "min_keep",           p->min_keep,            0, INT32_MAX },
        { "penalty_last_n",     p->penalty_last_n,     -1, INT32_MAX },
        { "dry_allowed_length", p->dry_allowed_length,  0, INT32_MAX },
        { "dry_penalty_last_n", p->dry_penalty_last_n, -1, INT32_MAX },
        { "mirostat",           p->mirostat,            0, 2 },
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        if (ints[i].value >= ints[i].min && ints[i].value <= ints[i].max) continue;
        if (ints[i].max == INT32_MAX) return hs_fail(err, HS_E_ARG, "%s: found %d, expected %d or more", ints[i].name, ints[i].value, ints[i].min);
        return hs_fail(err, HS_E_ARG, "%s: found %d, expected %d to %d", ints[i].name, ints[i].value, ints[i].min, ints[i].max);
    }
    const float big = FLT_MAX;
    const struct { const char * name; float value, min, max; } floats[] = {
        { "temp",              p->temp,             -big, big },
        { "dynatemp_range",    p->dynatemp_range,    0,   big },
        { "dynatemp_exponent", p->dynatemp_exponent, 0,   big },
        { "top_p",             p->top_p,             0,   1 },
        { "min_p",             p->min_p,             0,   1 },
        { "typ_p",             p->typ_p,             0,   1 },
        { "top_n_sigma",       p->top_n_sigma,      -big, big },
        { "xtc_probability",   p->xtc_probability,   0,   1 },
        { "xtc_threshold",     p->xtc_threshold,     0,   1 },
        { "penalty_repeat",    p->penalty_repeat,    FLT_MIN, big },
        { "penalty_freq",      p->penalty_freq,     -big, big },
        { "penalty_present",   p->penalty_present,  -big, big },
        { "dry_multiplier",    p->dry_multiplier,    0,   big },
        { "dry_base",          p->dry_base,          0,   big },
        { "mirostat_tau",      p->mirostat_tau,      0,   big },
        { "mirostat_eta",      p->mirostat_eta,      0,   big },
    };
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        if (floats[i].value >= floats[i].min && floats[i].value <= floats[i].max) continue;      // false for NaN too
        if (floats[i].min == -big) return hs_fail(err, HS_E_ARG, "%s: found %g, expected a finite number", floats[i].name, floats[i].value);
        if (floats[i].max == big) {
            return hs_fail(err, HS_E_ARG, "%s: found %g, expected a finite number %s", floats[i].name, floats[i].value,
                           floats[i].min > 0 ? "over 0" : "of 0 or more");
        }
        return hs_fail(err, HS_E_ARG, "%s: found %g, expected %g to %g", floats[i].name, floats[i].value, floats[i].min, floats[i].max);
    }
    if (p->samplers) HS_TRY(check_order(p->samplers, err));
    HS_TRY(check_bias(n_vocab, p, err));
    return check_breakers(n_vocab, p, err);
}
