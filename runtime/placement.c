// Layers -> devices: sizes from the tensor table and the layer plan, a cut between CPU and GPUs, and shares of the GPUs.
#include "placement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kv_cache.h"
#include "session.h"
#include "status.h"

#define MARGIN ((uint64_t) 512 << 20) // bytes left free on a GPU: the driver's, the libraries' and other programs' needs

struct layer_bytes { uint64_t dense, experts, cache; };

struct placer {
    const struct hs_hparams * hp;
    const struct hs_layer_plan * plan;
    const hs_model_params * p;
    struct layer_bytes * layers;
    uint64_t output, input;
    int64_t n_vocab;
    uint64_t budget[HS_MAX_DEVICES], used[HS_MAX_DEVICES], host; // by index in gpus
    double   share[HS_MAX_DEVICES];                              // cumulative, the last is 1
    struct hs_placement * out;
    hs_error * err;
};

// Bytes of each layer's weights, of the output (a tied embedding is copied for it) and of the input.
static void measure(struct placer * c, const hs_gguf * g) {
    bool tied = true;
    for (int64_t i = 0; i < hs_gguf_n_tensors(g); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(g, i);
        int il = -1;
        if (sscanf(t->name, "blk.%d.", &il) == 1 && il >= 0 && il < c->hp->n_layer) {
            *(strstr(t->name, "_exps.") ? &c->layers[il].experts : &c->layers[il].dense) += t->size;
        } else if (strncmp(t->name, "output", 6) == 0) {
            c->output += t->size;
            tied = tied && strcmp(t->name, "output.weight");
        } else if (strcmp(t->name, "token_embd.weight") == 0) {
            c->input = t->size;
            c->n_vocab = t->ne[1];
        }
    }
    if (tied) c->output += c->input;
}

// Rough size of a graph's buffers and of the kernels' scratch on one GPU, for a ubatch: a few activations a token, block scores and their maxima.
static uint64_t compute_bytes(const struct placer * c, const struct hs_kv_shape * s, const struct hs_kv_bytes * kv) {
    uint64_t widest = 0, heads = 0, matrix = 0; // matrix: one widened to f16 (ggml_ops/cuda/matmul.cu)
    bool scores = false;
    for (int32_t il = 0; il < c->hp->n_layer; il++) {
        const struct hs_layer * l = &c->plan->layers[il];
        const uint64_t moe = l->moe ? 3 * (uint64_t) c->hp->moe.n_expert_used * (uint64_t) (c->hp->moe.n_ff_exp + c->hp->n_embd) : 0;
        const uint64_t width = 3 * (uint64_t) l->n_ff + moe + 6 * (uint64_t) c->hp->n_embd + 3 * (uint64_t) l->n_head * (uint64_t) (l->head_dim_k + l->head_dim_v);
        widest = width > widest ? width : widest;
        matrix = 2 * (uint64_t) l->n_ff * (uint64_t) c->hp->n_embd > matrix ? 2 * (uint64_t) l->n_ff * (uint64_t) c->hp->n_embd : matrix;
        heads = (uint64_t) l->n_head > heads ? (uint64_t) l->n_head : heads;
        scores = scores || l->emits_scores;
    }
    const uint64_t n = (uint64_t) s->n_ubatch, blocks = scores ? (uint64_t) kv->n_pages : 0;
    uint64_t widened = 0; // q8_0 caches of a prompt are widened to f16, a layer at a time (ggml_ops/cuda/widen.cu)
    for (int32_t il = 0; s->type_k == GGML_TYPE_Q8_0 && il < c->hp->n_layer; il++) {
        const struct hs_layer * l = &c->plan->layers[il];
        const uint64_t bytes = l->owns_pages ? 2 * (uint64_t) s->n_ctx * (uint64_t) l->n_head_kv * (uint64_t) (l->head_dim_k + l->head_dim_v) : 0;
        widened = bytes > widened ? bytes : widened;
    }
    return 4 * n * (2 * widest + 2 * blocks * heads) + 4 * n * (uint64_t) c->n_vocab + matrix + widened;
}

static int choose_devices(struct placer * c) {
    const char * list = c->p->devices;
    struct hs_placement * o = c->out;
    if (list && strcmp(list, "none") == 0) return HS_OK;
    if (!list) {
        for (; o->n_gpus < hs_gpu_count(); o->n_gpus++) o->gpus[o->n_gpus] = o->n_gpus;
        return HS_OK;
    }
    for (const char * at = list; *at;) {
        const size_t n = strcspn(at, ",");
        int32_t found = HS_ON_CPU;
        for (int32_t d = 0; d < hs_gpu_count(); d++) {
            const char * name = hs_device_name(d);
            if (strlen(name) == n && strncmp(name, at, n) == 0) found = d;
        }
        if (found == HS_ON_CPU) return hs_fail(c->err, HS_E_ARG, "devices: found '%.*s', expected 'none' or some of the %d GPUs, by name (CUDA0 ...)", (int) n, at, hs_gpu_count());
        for (int32_t i = 0; i < o->n_gpus; i++) {
            if (o->gpus[i] == found) return hs_fail(c->err, HS_E_ARG, "devices: '%.*s' is named twice", (int) n, at);
        }
        o->gpus[o->n_gpus++] = found;
        at += n + (at[n] == ',');
    }
    return HS_OK;
}

// What each GPU may take, and its share of the whole.
static int weigh_devices(struct placer * c, uint64_t compute) {
    const struct hs_placement * o = c->out;
    const float * split = c->p->tensor_split;
    if (split && o->n_gpus && c->p->n_tensor_split != o->n_gpus) {
        return hs_fail(c->err, HS_E_ARG, "tensor_split: has %d shares, expected %d, one for each GPU in use", c->p->n_tensor_split, o->n_gpus);
    }
    double sum = 0;
    for (int32_t d = 0; d < o->n_gpus; d++) {
        uint64_t free_bytes, total;
        hs_device_free_memory(o->gpus[d], &free_bytes, &total);
        c->budget[d] = free_bytes > MARGIN + compute ? free_bytes - MARGIN - compute : 0;
        if (split && !(split[d] >= 0 && split[d] < 1e30f)) return hs_fail(c->err, HS_E_ARG, "tensor_split: share %d is %g, expected at least 0", d, (double) split[d]);
        sum += split ? (double) split[d] : (double) c->budget[d] + 1;
    }
    if (o->n_gpus && sum <= 0) return hs_fail(c->err, HS_E_ARG, "tensor_split: all shares are 0");
    double part = 0;
    for (int32_t d = 0; d < o->n_gpus; d++) {
        part += split ? (double) split[d] : (double) c->budget[d] + 1;
        c->share[d] = part / sum;
    }
    return HS_OK;
}

// The first layer from `first` on with which no later layer reads an earlier one's cache.
static int32_t group_edge(const struct hs_layer_plan * plan, int32_t first) {
    for (int32_t il = first; il < plan->n_layer; il++) {
        const int32_t source = plan->layers[il].kv_source;
        if (source >= 0 && source < first) return group_edge(plan, il + 1 < plan->n_layer ? il + 1 : plan->n_layer);
    }
    return first;
}

static uint64_t gpu_bytes(const struct placer * c, int32_t il, bool cpu_moe) {
    const struct layer_bytes * b = &c->layers[il];
    return b->dense + b->cache + (cpu_moe ? 0 : b->experts);
}

// Place n layers (from the output down) with the experts of the first n_cpu_moe layers on the CPU. Does it fit the budgets?
static bool place(struct placer * c, int32_t n, int32_t n_cpu_moe) {
    struct hs_placement * o = c->out;
    const int32_t n_layer = c->hp->n_layer;
    const int32_t first = n < 1 ? n_layer : group_edge(c->plan, n_layer - (n - 1 < n_layer ? n - 1 : n_layer));
    memset(c->used, 0, sizeof c->used);
    c->host = n > 0 && first == 0 ? 0 : c->input;
    uint64_t total = n < 1 ? 0 : c->output, so_far = 0;
    for (int32_t il = first; il < n_layer; il++) total += gpu_bytes(c, il, il < n_cpu_moe);
    int32_t d = 0;
    for (int32_t il = 0; il < n_layer; il++) {
        o->layer[il] = HS_ON_CPU;
        o->cpu_moe[il] = false;
        if (il < first) {
            c->host += c->layers[il].dense + c->layers[il].experts + c->layers[il].cache;
            continue;
        }
        o->cpu_moe[il] = il < n_cpu_moe && c->layers[il].experts;
        const uint64_t bytes = gpu_bytes(c, il, o->cpu_moe[il]);
        if (group_edge(c->plan, il) == il) { // no later layer reads an earlier one's cache: on the device where most of this layer would lie
            while (d + 1 < o->n_gpus && (double) so_far + (double) bytes / 2 > c->share[d] * (double) total) d++;
        }
        o->layer[il] = (int16_t) o->gpus[d];
        c->used[d] += bytes;
        c->host += o->cpu_moe[il] ? c->layers[il].experts : 0;
        so_far += bytes;
    }
    o->input = n > 0 && first == 0 ? o->layer[0] : HS_ON_CPU; // with every layer there, a token never waits for the CPU
    for (int32_t i = 0; i < o->n_gpus; i++) c->used[i] += o->gpus[i] == o->input ? c->input : 0;
    while (d + 1 < o->n_gpus && c->share[d] <= 0) d++; // no layer has come to these
    o->output = n < 1 ? HS_ON_CPU : (int16_t) o->gpus[d];
    if (n >= 1) c->used[d] += c->output;
    else c->host += c->output;
    o->n_gpu_layers = n < 1 ? 0 : n_layer - first + 1;
    bool fits = true;
    for (int32_t i = 0; i < o->n_gpus; i++) fits = fits && c->used[i] <= c->budget[i];
    return fits;
}

// The most that fits: everything; else with the experts of as few layers as possible on the CPU; else as many layers as possible.
static void place_what_fits(struct placer * c, int32_t n_cpu_moe) {
    const int32_t n_layer = c->hp->n_layer;
    bool experts = false;
    for (int32_t il = 0; il < n_layer; il++) experts = experts || c->layers[il].experts;
    for (int32_t m = n_cpu_moe; m <= (experts ? n_layer : n_cpu_moe); m++) {
        if (place(c, n_layer + 1, m)) return;
    }
    for (int32_t n = n_layer; n > 0; n--) {
        if (place(c, n, experts ? n_layer : n_cpu_moe)) return;
    }
    place(c, 0, 0);
}

// GPUs that got nothing are not in use.
static void drop_idle(struct placer * c) {
    struct hs_placement * o = c->out;
    int32_t n = 0;
    for (int32_t d = 0; d < o->n_gpus; d++) {
        if (c->used[d] == 0) continue;
        o->gpus[n] = o->gpus[d];
        c->used[n++] = c->used[d];
    }
    o->n_gpus = n;
}

// "CUDA0: layers 0-35, output (4.6 GiB with caches); CPU: input (0.3 GiB)"
static void describe(struct placer * c) {
    struct hs_placement * o = c->out;
    const int32_t n_layer = c->hp->n_layer;
    size_t at = 0;
    for (int32_t d = -1; d < o->n_gpus; d++) { // the CPU comes last
        const int32_t i = d + 1 < o->n_gpus ? d + 1 : -1, device = i >= 0 ? o->gpus[i] : HS_ON_CPU;
        int32_t first = -1, last = -1;
        for (int32_t il = 0; il < n_layer; il++) {
            if (o->layer[il] != device) continue;
            first = first < 0 ? il : first;
            last = il;
        }
        const uint64_t bytes = i >= 0 ? c->used[i] : c->host;
        char layers[48] = "no layers";
        if (first >= 0 && first == last) snprintf(layers, sizeof layers, "layer %d", first);
        else if (first >= 0) snprintf(layers, sizeof layers, "layers %d-%d", first, last);
        const int n = snprintf(o->text + at, sizeof o->text - at, "%s%s: %s%s%s (%.2f GiB%s)", at ? "; " : "", hs_device_name(device), layers,
            o->output == device ? ", output" : "", o->input == device ? ", input" : "", (double) bytes / (1 << 30), i < 0 && first < 0 ? "" : " with caches");
        if (n < 0 || (size_t) n >= sizeof o->text - at) return;
        at += (size_t) n;
    }
    int32_t moved = 0;
    for (int32_t il = 0; il < n_layer; il++) moved += o->cpu_moe[il];
    if (moved) snprintf(o->text + at, sizeof o->text - at, "; experts of %d layers on the CPU", moved);
}

static int make(struct placer * c, const hs_gguf * g) {
    const hs_model_params * p = c->p;
    const hs_session_params defaults = hs_session_default_params();
    hs_session_params resolved;
    struct hs_kv_shape shape;
    struct hs_kv_bytes kv;
    if (p->n_gpu_layers < -1) return hs_fail(c->err, HS_E_ARG, "n_gpu_layers: found %d, expected -1 (what fits), 0 or more", p->n_gpu_layers);
    if (p->n_cpu_moe < -1) return hs_fail(c->err, HS_E_ARG, "n_cpu_moe: found %d, expected -1 (all), 0 or more", p->n_cpu_moe);
    HS_TRY(hs_session_resolve(c->hp, p->fit ? p->fit : &defaults, &resolved, &shape, c->err));
    HS_TRY(choose_devices(c));
    if (p->n_gpu_layers == 0) c->out->n_gpus = 0;
    hs_kv_bytes(c->plan, &shape, NULL, &kv);
    measure(c, g);
    for (int32_t il = 0; il < c->hp->n_layer; il++) c->layers[il].cache = hs_kv_layer_bytes(c->plan, &shape, il, hs_device_buft(c->out->n_gpus ? c->out->gpus[0] : HS_ON_CPU));
    HS_TRY(weigh_devices(c, compute_bytes(c, &shape, &kv)));
    const int32_t n_cpu_moe = p->n_cpu_moe < 0 || p->n_cpu_moe > c->hp->n_layer ? c->hp->n_layer : p->n_cpu_moe;
    if (c->out->n_gpus == 0) place(c, 0, 0);
    else if (p->n_gpu_layers < 0) place_what_fits(c, n_cpu_moe);
    else place(c, p->n_gpu_layers > c->hp->n_layer ? c->hp->n_layer + 1 : p->n_gpu_layers, n_cpu_moe);
    const bool asked = c->out->n_gpus > 0;
    if (!asked && p->n_gpu_layers > 0 && !(p->devices && strcmp(p->devices, "none") == 0)) {
        hs_log(3, "n_gpu_layers: there is no GPU, or no kernel for it in this build: everything runs on the CPU\n");
    }
    drop_idle(c);
    describe(c);
    if (asked) hs_log(2, "%s\n", c->out->text);
    if (asked && p->n_gpu_layers < 0 && c->out->n_gpu_layers < c->hp->n_layer + 1) {
        hs_log(3, "only %d of %d layers fit into the free memory of the GPUs with n_ctx %d, the rest runs on the CPU\n", c->out->n_gpu_layers, c->hp->n_layer + 1, shape.n_ctx);
    }
    return HS_OK;
}

int hs_placement_make(const hs_gguf * g, const struct hs_hparams * hp, const struct hs_layer_plan * plan, const hs_model_params * p, struct hs_placement * out,
                      hs_error * err) {
    memset(out, 0, sizeof *out);
    struct placer c = { .hp = hp, .plan = plan, .p = p, .out = out, .err = err };
    c.layers = calloc((size_t) hp->n_layer, sizeof *c.layers);
    const int rc = c.layers ? make(&c, g) : hs_fail(err, HS_E_MEMORY, "placement: cannot allocate %d layers", hp->n_layer);
    free(c.layers);
    return rc;
}
