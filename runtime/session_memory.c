// What a session takes, by kind and by device: planned from the layer plan, or read from the allocators.
#include "session.h"
#include "status.h"

static void fill_memory(const struct hs_model * m, const struct hs_kv_shape * shape, hs_memory * out) {
    struct hs_kv_bytes b;
    hs_kv_bytes(&m->plan, shape, &m->placement, &b);
    *out = (hs_memory) { .weights = m->weights.bytes, .pages = b.pages, .rings = b.rings, .page_bytes_per_token = b.per_token,
        .ring_bytes_per_seq = shape->n_seq ? b.rings / (uint64_t) shape->n_seq : 0, .full_attention_bytes_per_token = b.full_attention_per_token,
        .n_pages = b.n_pages, .page_size = m->plan.page_size };
}

int hs_memory_plan(const hs_model * m, const hs_session_params * p, hs_memory * out, hs_error * err) {
    const hs_session_params defaults = hs_session_default_params();
    hs_session_params resolved;
    struct hs_kv_shape shape;
    HS_TRY(hs_session_resolve(&m->hp, p ? p : &defaults, &resolved, &shape, err));
    fill_memory(m, &shape, out);
    return hs_ok(err);
}

static uint64_t size_of(ggml_backend_buffer_t buf) { return buf ? ggml_backend_buffer_get_size(buf) : 0; } // the allocator's own figure

int32_t hs_session_device_memory(const hs_session * s, hs_device_memory * out, int32_t n_max) {
    const struct hs_placement * at = &s->model->placement;
    const int32_t n = at->n_gpus + 1;
    for (int32_t i = 0; i < n && i < n_max; i++) { // backends lie in the same order, the CPU last
        const int32_t device = i < at->n_gpus ? at->gpus[i] : HS_ON_CPU;
        out[i] = (hs_device_memory) { .device = hs_device_name(device), .weights = hs_weights_bytes_on(&s->model->weights, device),
            .pages = size_of(s->kv.pages_buf[1 + device]), .rings = size_of(s->kv.rings_buf[1 + device]),
            .compute = ggml_backend_sched_get_buffer_size(s->sched, s->backends.backend[i]) + (i == 0 && at->n_gpus ? size_of(s->inputs_buf) : 0) };
    }
    return n;
}

void hs_session_memory(const hs_session * s, hs_memory * out) {
    hs_device_memory by_device[HS_MAX_DEVICES + 1];
    const int32_t n = hs_session_device_memory(s, by_device, HS_MAX_DEVICES + 1);
    fill_memory(s->model, &s->kv.shape, out);
    out->pages = out->rings = 0;
    for (int32_t i = 0; i < n; i++) {
        out->pages += by_device[i].pages;
        out->rings += by_device[i].rings;
        out->compute += by_device[i].compute;
    }
    out->checkpoints = (uint64_t) s->kv.n_checkpoints_live * s->kv.checkpoint_bytes;
}
