#include "op_perf.h"

#include "ggml-cpu.h"
#include "op_floor.h"
#include "op_perf_node.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NODES_MAX 8
#define SPEC_MAX 96
#define SAMPLE_US 20000.0

static const char * const default_groups[] = {
    "full f16 32/8x128 1@4096 | full-noscores f16 32/8x128 1@4096 | flash f16 32/8x128 1@4096",
    "full q8_0 32/8x128 1@4096 | full-noscores q8_0 32/8x128 1@4096 | flash q8_0 32/8x128 1@4096",
    "full f16 32/8x128 1@32768 | flash f16 32/8x128 1@32768",
    "full f16 32/8x128 512@4096 | full-noscores f16 32/8x128 512@4096 | flash f16 32/8x128 512@4096",
    "sparse f16 32/8x128 1@4096 | sparse f16 32/8x128 1@65536",
    "full f16 32/8x128 512@16384 | sparse f16 32/8x128 512@16384 | sparse-random f16 32/8x128 512@16384",
    "select f32 32/8x128 1@32768",
    "window f16 32/8x128 1@4096",
};

struct group {
    struct hs_perf_node node[NODES_MAX];
    char spec[NODES_MAX][SPEC_MAX];
    double * us[NODES_MAX]; // [rounds]
    int repeats[NODES_MAX], n;
};

static int by_value(const void * a, const void * b) {
    const double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static double median(const double * x, int n) {
    double * sorted = malloc((size_t) n * sizeof(*x));
    if (!sorted) {
        return NAN;
    }
    memcpy(sorted, x, (size_t) n * sizeof(*x));
    qsort(sorted, (size_t) n, sizeof(*x), by_value);
    const double m = 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]);
    free(sorted);
    return m;
}

// Mean microseconds a node of n runs of the graph; NAN: the backend failed. A device gets all of them before it is waited for.
static double mean_us(ggml_backend_t backend, const struct hs_perf_node * node, int n) {
    const int64_t start = ggml_time_us();
    for (int i = 0; i < n; i++) {
        if (ggml_backend_graph_compute_async(backend, node->graph) != GGML_STATUS_SUCCESS) {
            return NAN;
        }
    }
    ggml_backend_synchronize(backend);
    return (double) (ggml_time_us() - start) / ((double) n * node->copies);
}

// "A | B" to nodes; false: *error says what is wrong.
static bool make_group(struct group * g, ggml_backend_t backend, const char * text, const struct hs_perf_options * o, const char ** error) {
    *error = "out of memory";
    while (*text) {
        const size_t len = strcspn(text, "|"), lead = strspn(text, " ");
        size_t end = len;
        while (end > lead && text[end - 1] == ' ') {
            end--;
        }
        if (g->n == NODES_MAX || end <= lead || end - lead >= SPEC_MAX) {
            *error = "expected 1 to 8 specs with | between them";
            return false;
        }
        struct hs_perf_spec spec;
        memcpy(g->spec[g->n], text + lead, end - lead);
        if (!hs_perf_parse(g->spec[g->n], &spec)) {
            *error = "expected specs as 'full f16 32/8x128 1@4096': kind, type, query/KV heads x head dim, queries@keys";
            return false;
        }
        g->n++;
        g->us[g->n - 1] = calloc((size_t) o->rounds, sizeof(double));
        if (!g->us[g->n - 1]) {
            return false;
        }
        if (!hs_perf_build(&g->node[g->n - 1], backend, &spec, o->threads, g->node, g->n - 1)) {
            *error = g->node[g->n - 1].error;
            return false;
        }
        text += len + (text[len] == '|');
    }
    return g->n > 0;
}

static void free_group(struct group * g) {
    for (int i = g->n - 1; i >= 0; i--) {
        hs_perf_free(&g->node[i]);
        free(g->us[i]);
    }
}

// All rounds. What a run of another node pushed out of the caches comes back in one run that does not count.
static bool time_group(struct group * g, ggml_backend_t backend, int rounds) {
    for (int i = 0; i < g->n; i++) {
        mean_us(backend, &g->node[i], 1); // memory, threads
        const double us = mean_us(backend, &g->node[i], 1) * g->node[i].copies;
        g->repeats[i] = us < SAMPLE_US ? (int) ceil(SAMPLE_US / fmax(us, 1.0)) : 1;
    }
    for (int r = 0; r < rounds; r++) {
        for (int x = 0; x < g->n; x++) {
            const int i = r % 2 ? g->n - 1 - x : x;
            if (g->repeats[i] > 1) {
                mean_us(backend, &g->node[i], 1);
            }
            g->us[i][r] = mean_us(backend, &g->node[i], g->repeats[i]);
            if (isnan(g->us[i][r])) {
                return false;
            }
        }
    }
    return true;
}

// NMSE of a node's result against the first node's; NAN where they do not compute the same.
static double nmse(const struct group * g, int i) {
    const struct hs_perf_spec * a = &g->node[0].spec, * b = &g->node[i].spec;
    const bool same_shape = a->n_head == b->n_head && a->n_head_kv == b->n_head_kv && a->d == b->d && a->n_new == b->n_new && a->n_keys == b->n_keys;
    if (i == 0 || a->kind > HS_PERF_FLASH || b->kind > HS_PERF_FLASH || a->type != b->type || !same_shape) {
        return NAN;
    }
    const int64_t n = ggml_nelements(g->node[0].out);
    const size_t bytes = (size_t) n * sizeof(float);
    float * x = malloc(bytes), * y = malloc(bytes);
    double error = 0.0, norm = 0.0;
    if (x && y) {
        ggml_backend_tensor_get(g->node[0].out, x, 0, bytes);
        ggml_backend_tensor_get(g->node[i].out, y, 0, bytes);
        for (int64_t e = 0; e < n; e++) {
            error += ((double) x[e] - y[e]) * ((double) x[e] - y[e]);
            norm += (double) x[e] * x[e];
        }
    }
    free(x);
    free(y);
    return error / norm; // NAN without memory
}

// The floors of the CPU: reading the bytes once, the multiply-adds. NAN for a device: bench/cuda.py measures its own.
static void floors_us(const struct hs_perf_node * n, int threads, double fma_per_s, double * read_us, double * fma_us) {
    *read_us = *fma_us = NAN;
    if (!isnan(fma_per_s)) {
        *read_us = n->bytes / hs_floor_read_per_second((size_t) n->bytes, threads) * 1e6;
        *fma_us = 0.5 * n->flops / fma_per_s * 1e6;
    }
}

// ', "KEY": number', or null for NAN.
static void print_number(const char * key, const char * format, double x) {
    printf(", \"%s\": ", key);
    if (isnan(x)) {
        printf("null");
    } else {
        printf(format, x);
    }
}

static void print_json(const struct group * g, const char * text, int rounds, int threads, double fma_per_s) {
    printf("{\"group\": \"%s\", \"nodes\": [", text);
    for (int i = 0; i < g->n; i++) {
        const struct hs_perf_node * n = &g->node[i];
        double read_us, fma_us;
        floors_us(n, threads, fma_per_s, &read_us, &fma_us);
        printf("%s{\"spec\": \"%s\", \"bytes\": %.0f, \"flops\": %.0f", i ? ", " : "", g->spec[i], n->bytes, n->flops);
        print_number("read_us", "%.3f", read_us);
        print_number("fma_us", "%.3f", fma_us);
        print_number("nmse", "%.3e", nmse(g, i));
        printf(", \"us\": [");
        for (int r = 0; r < rounds; r++) {
            printf("%s%.3f", r ? ", " : "", g->us[i][r]);
        }
        printf("]}");
    }
    printf("]}\n");
}

static void print_text(const struct group * g, int rounds, int threads, double fma_per_s) {
    for (int i = 0; i < g->n; i++) {
        const struct hs_perf_node * n = &g->node[i];
        const double us = median(g->us[i], rounds);
        double read_us, fma_us;
        floors_us(n, threads, fma_per_s, &read_us, &fma_us);
        const bool by_bytes = n->spec.n_new == 1 || n->flops == 0.0;
        printf("%-40s %11.1f us  %7.1f %-7s", g->spec[i], us, (by_bytes ? n->bytes : n->flops) / us * 1e-3, by_bytes ? "GB/s" : "GFLOP/s");
        if (!isnan(read_us)) {
            printf("  %6.2f of the floor", us / fmax(read_us, fma_us));
        }
        if (i > 0) {
            double * ratio = malloc((size_t) rounds * sizeof(*ratio));
            for (int r = 0; ratio && r < rounds; r++) {
                ratio[r] = g->us[i][r] / g->us[0][r];
            }
            printf("  %5.2fx of the first's time", ratio ? median(ratio, rounds) : NAN);
            free(ratio);
        }
        printf("\n");
    }
}

int hs_perf(ggml_backend_t backend, const struct hs_perf_options * options) {
    struct hs_perf_options o = *options;
    o.threads = o.threads ? o.threads : 2;
    o.rounds = o.rounds ? o.rounds : 7;
    if (o.n_groups == 0) {
        o.groups = default_groups;
        o.n_groups = (int) (sizeof(default_groups) / sizeof(default_groups[0]));
    }
    const bool cpu = ggml_backend_is_cpu(backend);
    const double fma_per_s = cpu ? hs_floor_fma_per_second(o.threads) : NAN;
    ggml_threadpool_t pool = NULL;
    if (cpu) { // threads that live as long as a session's; without a pool of its own a backend starts them anew for every graph
        struct ggml_threadpool_params params = ggml_threadpool_params_default(o.threads);
        pool = ggml_threadpool_new(&params);
        ggml_backend_cpu_set_n_threads(backend, o.threads);
        ggml_backend_cpu_set_threadpool(backend, pool);
    }
    if (o.json) {
        printf("{\"level\": \"%s\", \"threads\": %d, \"rounds\": %d", cpu ? hs_cpu_level() : ggml_backend_name(backend), o.threads, o.rounds);
        print_number("fma_per_s", "%.4g", fma_per_s);
        printf("}\n");
    } else if (cpu) {
        printf("level %s, %d threads, %d rounds (medians), %.3g multiply-adds a second at most\n", hs_cpu_level(), o.threads, o.rounds, fma_per_s);
    } else {
        printf("%s, %d rounds (medians)\n", ggml_backend_name(backend), o.rounds);
    }
    fflush(stdout);
    int rc = 0;
    for (int i = 0; i < o.n_groups; i++) {
        if (o.only && regexec(o.only, o.groups[i], 0, NULL, 0) != 0) {
            continue;
        }
        struct group * g = calloc(1, sizeof(*g));
        const char * error = "out of memory";
        if (!g || !make_group(g, backend, o.groups[i], &o, &error)) {
            rc = 1;
        } else if (!time_group(g, backend, o.rounds)) {
            error = "the backend failed";
            rc = 1;
        } else {
            error = NULL;
        }
        if (error) {
            printf(o.json ? "{\"group\": \"%s\", \"error\": \"%s\"}\n" : "%s: %s\n", o.groups[i], error);
        } else if (o.json) {
            print_json(g, o.groups[i], o.rounds, o.threads, fma_per_s);
        } else {
            print_text(g, o.rounds, o.threads, fma_per_s);
        }
        fflush(stdout);
        if (g) {
            free_group(g);
        }
        free(g);
    }
    if (pool) {
        ggml_backend_cpu_set_threadpool(backend, NULL);
        ggml_threadpool_free(pool);
    }
    return rc;
}
