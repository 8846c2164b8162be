// op_runner: the cases of op_cases.c on a backend.   op_runner test | perf | support   (op_runner --help)
#include "op_compare.h"
#include "op_perf.h"

#include "ggml-cpu.h"

#ifdef HS_CUDA
#include "hs_cuda.h"
#endif

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char * mode, * op, * backend, * level, * name;
    const char * pattern;
    regex_t regex;
    int threads; // 0: 1, 2, 3 and 4
    bool plant, verbose, json;
    int rounds;
    const char ** groups; // of perf: arguments that are no options
    int n_groups;
};

struct tally { int cases, runs, failed, skipped; struct hs_errors worst[HS_OP_COUNT]; };

static const char usage[] =
    "usage: op_runner test|perf|support [options] [perf: GROUP...]\n"
    "  -o OP        only this op: attn_full, select_blocks, attn_sparse, attn_window, linear\n"
    "  -p REGEX     only cases whose name matches (POSIX extended)\n"
    "  -c NAME      only the case of this name, as printed for a failure\n"
    "  -b BACKEND   a ggml backend device, default CPU\n"
    "  -t N         threads; default for test: 1, 2, 3 and 4 (the nodes are made for 3), for perf: 2\n"
    "  --level L    CPU instruction set: scalar, avx2, avx512, avx512vnni, neon, neon_dotprod;\n"
    "               default for test: all that this machine has, for perf: the best\n"
    "  --plant      test the test: spoil every right result in several ways; each must be noticed\n"
    "  -v           print every case\n"
    "  GROUP        perf: what to time in turn, e.g. 'full f16 32/8x128 1@4096 | flash f16 32/8x128 1@4096' (op_perf_node.h); default: a short list\n"
    "  --rounds N   perf: measurements of everything (7)\n"
    "  --json       perf: one object a line (op_perf.h)\n";

static bool wanted(const struct options * o, const struct hs_case * c, const char * name) {
    return (!o->op || strcmp(o->op, hs_op_table[c->op].name) == 0) && (!o->name || strcmp(o->name, name) == 0) &&
           (!o->pattern || regexec(&o->regex, name, 0, NULL, 0) == 0);
}

static void report(const struct options * o, struct tally * t, const char * name, const char * level, int threads, const char * why) {
    t->failed++;
    printf("FAIL %s\n     %s, %d threads: %s\n     again: op_runner test -b %s -t %d --level %s%s -c '%s'\n", name, level, threads, why, o->backend,
        threads, level, o->plant ? " --plant" : "", name);
}

// Every way to spoil this result must be noticed.
static void check_plants(const struct options * o, struct tally * t, const struct hs_inputs * in, struct hs_case_graph * g, ggml_backend_t backend,
    const struct hs_case_result * ref, const char * name, const char * level, int threads) {
    for (int kind = 0; kind < HS_PLANT_COUNT; kind++) {
        struct hs_case_result got;
        struct hs_errors unused = { 0 };
        char why[320];
        if (hs_graph_run(g, backend, &got) && hs_plant(in, kind, &got)) {
            t->runs++;
            if (hs_compare(in, ggml_backend_is_cpu(backend), &got, ref, &unused, why, sizeof(why))) {
                snprintf(why, sizeof(why), "planted error (%s) was not noticed", hs_plant_name(kind));
                report(o, t, name, level, threads, why);
            }
        }
        hs_result_free(&got);
    }
}

// Cases for the tiles of GPU kernels, which cost the CPU much and show it nothing that smaller ones do not: one run there, unless asked for.
static bool is_heavy(const struct hs_case * c) {
    return c->op != HS_OP_LINEAR && (double) hs_case_tokens(c) * hs_case_context(c) * c->n_head * (c->d_qk + c->d_v) > 8e6;
}

// One case at every level and number of threads.
static void run_levels(const struct options * o, struct tally * t, const struct hs_inputs * in, struct hs_case_graph * g, ggml_backend_t backend,
    const struct hs_case_result * ref, const char * name) {
    const bool cpu = ggml_backend_is_cpu(backend);
    for (int i = 0; i < (cpu ? hs_cpu_level_count() : 1); i++) {
        const char * level = cpu ? hs_cpu_level_name(i) : "-";
        if (cpu && (o->level ? strcmp(o->level, level) != 0 : is_heavy(&in->c) && i + 1 < hs_cpu_level_count())) {
            continue;
        }
        if (cpu) {
            hs_cpu_level_set(level);
        }
        const int first = o->threads ? o->threads : cpu && is_heavy(&in->c) ? HS_CASE_THREADS_MAX + 1 : 1, last = o->threads ? o->threads : o->plant || !cpu ? 1 : HS_CASE_THREADS_MAX + 1;
        for (int threads = first; threads <= last; threads++) {
            if (cpu) {
                ggml_backend_cpu_set_n_threads(backend, threads);
            }
            struct hs_case_result got;
            char why[320];
            t->runs++;
            if (!hs_graph_run(g, backend, &got)) {
                report(o, t, name, level, threads, g->error);
            } else if (!hs_compare(in, cpu, &got, ref, &t->worst[in->c.op], why, sizeof(why))) {
                report(o, t, name, level, threads, why);
            } else if (o->plant) {
                check_plants(o, t, in, g, backend, ref, name, level, threads);
            }
            hs_result_free(&got);
        }
    }
}

static void run_case(const struct options * o, struct tally * t, const struct hs_case * c, ggml_backend_t backend, ggml_backend_t cpu,
    const char * name) {
    struct hs_inputs in = { 0 };
    struct hs_case_graph ref_graph = { 0 }, graph = { 0 };
    struct hs_case_result ref = { 0 };
    t->cases++;
    if (hs_inputs_make(c, &in) != 0) {
        report(o, t, name, "-", 1, "out of memory");
    } else if (!hs_graph_build(&ref_graph, cpu, &in, c->against == HS_AGAINST_FULL ? HS_OP_ATTN_FULL : c->op, HS_IMPL_REF) ||
               !hs_graph_run(&ref_graph, cpu, &ref)) {
        report(o, t, name, "reference", 1, ref_graph.error);
    } else if (!hs_graph_build(&graph, backend, &in, c->op, HS_IMPL_KERNEL) && graph.unsupported && !ggml_backend_is_cpu(backend)) {
        t->skipped++; // the scheduler gives such a node to the CPU
    } else if (!graph.buffer) {
        report(o, t, name, "-", 1, graph.error);
    } else {
        run_levels(o, t, &in, &graph, backend, &ref, name);
    }
    if (o->verbose) {
        printf("%s\n", name);
    }
    hs_result_free(&ref);
    hs_graph_free(&graph);
    hs_graph_free(&ref_graph);
    hs_inputs_free(&in);
}

static int test(const struct options * o, const struct hs_case * cases, int n, ggml_backend_t backend) {
    struct tally t = { 0 };
    ggml_backend_t cpu = ggml_backend_cpu_init(); // the reference's
    if (!cpu) {
        fprintf(stderr, "op_runner: cannot start the CPU backend\n");
        return 1;
    }
    ggml_backend_cpu_set_n_threads(cpu, 1);
    for (int i = 0; i < n; i++) {
        char name[512];
        hs_case_name(&cases[i], name, sizeof(name));
        if (wanted(o, &cases[i], name)) {
            run_case(o, &t, &cases[i], backend, cpu, name);
        }
    }
    ggml_backend_free(cpu);
    for (int i = 0; i < HS_OP_COUNT; i++) {
        printf("%-14s largest NMSE: out %.2e, scores %.2e\n", hs_op_table[i].name, t.worst[i].out, t.worst[i].scores);
    }
    printf("%d cases, %d runs, %d failed", t.cases, t.runs, t.failed);
    if (t.skipped) {
        printf(", %d cases not supported by the backend", t.skipped);
    }
    printf("\n");
    if (t.cases == 0) {
        fprintf(stderr, "op_runner: no case matches\n");
    }
    return t.failed == 0 && t.cases > 0 ? 0 : 1;
}

// What the cases of an op cover, and whether the backend takes them: the table of docs/ops.md.
static int support(const struct hs_case * cases, int n, ggml_backend_t backend) {
    printf("| op | cases | %s | types (caches K, V; matrices) | head dims (QK-V) | query heads a KV head |\n", ggml_backend_name(backend));
    printf("|---|---|---|---|---|---|\n");
    for (int op = 0; op < HS_OP_COUNT; op++) {
        int n_cases = 0, n_ok = 0;
        bool type[GGML_TYPE_COUNT] = { false }, rep[257] = { false };
        char dims[512] = "";
        for (int i = 0; i < n; i++) {
            const struct hs_case * c = &cases[i];
            struct hs_inputs in = { 0 };
            struct hs_case_graph g = { 0 };
            if ((int) c->op != op) {
                continue;
            }
            n_cases++;
            const bool ok = hs_inputs_make(c, &in) == 0 && hs_graph_build(&g, backend, &in, c->op, HS_IMPL_KERNEL) &&
                            (!ggml_backend_is_cpu(backend) || hs_op_table[op].cpu_supported(g.res.node));
            hs_graph_free(&g);
            hs_inputs_free(&in);
            if (!ok) {
                continue;
            }
            char d[24];
            n_ok++;
            type[c->type_k] = type[c->type_v] = true;
            rep[c->n_head / c->n_head_kv] = true;
            snprintf(d, sizeof(d), "%d-%d ", c->d_qk, c->d_v);
            if (op != HS_OP_SELECT_BLOCKS && op != HS_OP_LINEAR && !strstr(dims, d)) {
                strncat(dims, d, sizeof(dims) - strlen(dims) - 1);
            }
        }
        printf("| %s | %d | ", hs_op_table[op].name, n_cases);
        if (n_ok > 0 && n_ok < n_cases) {
            printf("%d of them |", n_ok);
        } else {
            printf("%s |", n_ok ? "yes" : "no");
        }
        for (int i = 0; i < GGML_TYPE_COUNT && op != HS_OP_SELECT_BLOCKS; i++) {
            if (type[i]) {
                printf(" %s", ggml_type_name(i));
            }
        }
        printf(" | %s|", dims);
        for (int i = 1; i <= 256 && op != HS_OP_SELECT_BLOCKS && op != HS_OP_LINEAR; i++) {
            if (rep[i]) {
                printf(" %d", i);
            }
        }
        printf(" |\n");
    }
    return 0;
}

static ggml_backend_t open_backend(const char * name) {
#ifdef HS_CUDA
    int device;
    if (sscanf(name, "CUDA%d", &device) == 1) {
        return hs_cuda_backend_init(device);
    }
#endif
    return ggml_backend_init_by_name(name, NULL);
}

// A level of the CPU kernels; "sm80", "sm90": kernels of that compute capability at most.
static bool set_level(const char * name) {
#ifdef HS_CUDA
    int cc;
    if (sscanf(name, "sm%d", &cc) == 1 && cc > 0) {
        hs_cuda_limit_capability(10 * cc);
        return true;
    }
#endif
    return hs_cpu_level_set(name);
}

// groups: room for argc pointers.
static bool parse(int argc, char ** argv, struct options * o, const char ** groups) {
    *o = (struct options) { .backend = "CPU", .mode = argc > 1 ? argv[1] : "", .groups = groups };
    for (int i = 2; i < argc; i++) {
        const char * a = argv[i], * value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--plant") == 0) {
            o->plant = true;
        } else if (strcmp(a, "-v") == 0) {
            o->verbose = true;
        } else if (strcmp(a, "--json") == 0) {
            o->json = true;
        } else if (a[0] != '-' && strcmp(o->mode, "perf") == 0) {
            o->groups[o->n_groups++] = a;
        } else if (!value) {
            return false;
        } else if (strcmp(a, "-o") == 0) {
            o->op = argv[++i];
        } else if (strcmp(a, "-p") == 0) {
            o->pattern = argv[++i];
        } else if (strcmp(a, "-c") == 0) {
            o->name = argv[++i];
        } else if (strcmp(a, "-b") == 0) {
            o->backend = argv[++i];
        } else if (strcmp(a, "--level") == 0) {
            o->level = argv[++i];
        } else if (strcmp(a, "-t") == 0 || strcmp(a, "--rounds") == 0) {
            int * n = a[1] == 't' ? &o->threads : &o->rounds;
            *n = atoi(argv[++i]);
            if (*n < 1) {
                return false;
            }
        } else {
            return false;
        }
    }
    return strcmp(o->mode, "test") == 0 || strcmp(o->mode, "perf") == 0 || strcmp(o->mode, "support") == 0;
}

int main(int argc, char ** argv) {
    struct options o;
    const char ** groups = malloc((size_t) (argc + 1) * sizeof(*groups));
    if (!groups || !parse(argc, argv, &o, groups)) {
        fputs(usage, stderr);
        free(groups);
        return 2;
    }
    if (o.pattern && regcomp(&o.regex, o.pattern, REG_EXTENDED | REG_NOSUB) != 0) {
        fprintf(stderr, "op_runner: -p: found '%s', expected a POSIX extended regular expression\n", o.pattern);
        free(groups);
        return 2;
    }
    if (o.level && !set_level(o.level)) {
        fprintf(stderr, "op_runner: --level: found '%s', expected one that this machine can run:", o.level);
        for (int i = 0; i < hs_cpu_level_count(); i++) {
            fprintf(stderr, " %s", hs_cpu_level_name(i));
        }
        fprintf(stderr, "\n");
        free(groups);
        return 2;
    }
    int n = 0, rc = 1;
    struct hs_case * cases = hs_cases(&n);
    ggml_backend_t backend = open_backend(o.backend);
    if (!cases || !backend) {
        fprintf(stderr, "op_runner: %s\n", cases ? "-b: no such backend device" : "out of memory");
    } else if (strcmp(o.mode, "test") == 0) {
        rc = test(&o, cases, n, backend);
    } else if (strcmp(o.mode, "support") == 0) {
        rc = support(cases, n, backend);
    } else {
        const struct hs_perf_options perf = { .threads = o.threads, .rounds = o.rounds, .json = o.json, .only = o.pattern ? &o.regex : NULL,
            .groups = o.groups, .n_groups = o.n_groups };
        rc = hs_perf(backend, &perf);
    }
    if (backend) {
        ggml_backend_free(backend);
    }
    if (o.pattern) {
        regfree(&o.regex);
    }
    free(cases);
    free(groups);
    return rc;
}
