// The decorator: an ordinary CUDA backend whose device also claims our nodes, and whose graph_compute launches our kernels between runs of ordinary
// nodes, on the same stream. ggml's own functions see their own context and device; nothing of ggml is changed. Small graphs (a decoded token) are captured
// whole and replayed: capture.cu. A failed launch or allocation inside, which ggml ends with abort(), comes back as a status; a fault on the device does not.
#include "hs_cuda.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <new>

#include "capture.cuh"
#include "ggml-backend-impl.h"
#include "ggml-cuda.h"
#include "ggml-impl.h"
#include "launch.cuh"

namespace {

// The device that the scheduler sees. The first member, so that a ggml_backend_dev_t of ours is one of these.
struct device {
    ggml_backend_device dev;    // ggml's, with the functions below in place of those that look at our nodes or compare device pointers
    ggml_backend_dev_t inner;   // ggml's own
    ggml_backend_i iface;       // the backend's own functions
    hs_replays replays;
};

device * of(ggml_backend_dev_t dev) { return reinterpret_cast<device *>(dev); }

bool supports_op(ggml_backend_dev_t dev, const ggml_tensor * node) {
    const hs_op_row * row = hs_op_find(node);
    if (!row) {
        return node->op != GGML_OP_CUSTOM && of(dev)->inner->iface.supports_op(of(dev)->inner, node);
    }
    switch (row->id) {
        case HS_OP_SELECT_BLOCKS: return true;
        case HS_OP_LINEAR:        return false; // packed weights lie in host memory
        default:                  return hs_cuda_attn_supported(node);
    }
}

bool supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return of(dev)->inner->iface.supports_buft(of(dev)->inner, buft); }

bool offload_op(ggml_backend_dev_t dev, const ggml_tensor * node) {
    return node->op != GGML_OP_CUSTOM && of(dev)->inner->iface.offload_op && of(dev)->inner->iface.offload_op(of(dev)->inner, node);
}

ggml_backend_event_t event_new(ggml_backend_dev_t dev) { return of(dev)->inner->iface.event_new(of(dev)->inner); }

// ggml ends with abort() when a CUDA call fails, out of memory too. Inside guarded() that becomes an exception, and then false; anywhere else it stays.
struct aborted {};
thread_local bool guard = false;

void on_abort(const char * message) {
    if (guard) {
        throw aborted {};
    }
    fprintf(stderr, "%s\n", message);
}

template <typename F> bool guarded(F f) {
    static std::once_flag once;
    std::call_once(once, [] { ggml_set_abort_callback(on_abort); });
    guard = true;
    bool ok = true;
    try {
        f();
    } catch (...) { // aborted, or out of memory in a container
        ok = false;
    }
    guard = false;
    return ok;
}

void launch(ggml_backend_cuda_context & ctx, ggml_tensor * node, const hs_op_params * p) {
    switch (p->op) {
        case HS_OP_ATTN_FULL:     hs_cuda_attn_full(ctx, node, p); break;
        case HS_OP_ATTN_SPARSE:   hs_cuda_attn_sparse(ctx, node, p); break;
        case HS_OP_ATTN_WINDOW:   hs_cuda_attn_window(ctx, node, p); break;
        case HS_OP_SELECT_BLOCKS: hs_cuda_select_blocks(ctx, node, p); break;
        default: break;
    }
}

// Every node in order, on the backend's stream.
ggml_status run(ggml_backend_t backend, ggml_cgraph * graph) {
    const device * d = of(backend->device);
    ggml_backend_cuda_context & ctx = *static_cast<ggml_backend_cuda_context *>(backend->context);
    const int n = ggml_graph_n_nodes(graph), cc = ggml_cuda_info().devices[ctx.device].cc;
    for (int i = 0; i < n;) {
        int end = i;
        int covered = 0; // nodes that are one product of ours
        while (end < n && !hs_op_find(ggml_graph_node(graph, end)) && !hs_cuda_matmul_takes(ggml_graph_node(graph, end), cc) &&
               (covered = hs_cuda_gemv_takes(graph, end, cc)) == 0) {
            end++;
        }
        if (end > i) {
            ggml_cgraph part = ggml_graph_view(graph, i, end);
            hs_no_capture_of_part(ctx, &part);
            const ggml_status status = d->iface.graph_compute(backend, &part);
            if (status != GGML_STATUS_SUCCESS) {
                return status;
            }
        }
        if (end < n) {
            ggml_cuda_set_device(ctx.device);
            ggml_tensor * node = ggml_graph_node(graph, end);
            if (covered > 0) {
                hs_cuda_gemv(ctx, graph, end, covered);
            } else if (hs_op_find(node)) {
                launch(ctx, node, hs_op_node_params(node));
            } else {
                hs_cuda_matmul(ctx, node);
            }
            CUDA_CHECK(cudaGetLastError());
        }
        i = end + std::max(covered, 1);
    }
    return GGML_STATUS_SUCCESS;
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    ggml_backend_cuda_context & ctx = *static_cast<ggml_backend_cuda_context *>(backend->context);
    ggml_status status = GGML_STATUS_FAILED;
    if (guarded([&] { status = of(backend->device)->replays.compute(ctx, graph, [&] { return run(backend, graph); }); })) {
        return status;
    }
    cudaError_t error = cudaGetLastError();
    if (of(backend->device)->replays.abandon(ctx)) { // nothing that was captured has run: once more, plainly
        (void) cudaGetLastError();
        if (guarded([&] { status = run(backend, graph); })) {
            return status;
        }
        error = cudaGetLastError();
    }
    return error == cudaErrorMemoryAllocation ? GGML_STATUS_ALLOC_FAILED : GGML_STATUS_FAILED;
}

void free_backend(ggml_backend_t backend) {
    device * d = of(backend->device);
    backend->device = d->inner;
    {
        const std::lock_guard<std::mutex> lock(hs_capture_mutex()); // it destroys cuBLAS handles, which no capture must see
        d->iface.free(backend);
    }
    delete d;
}

} // namespace

extern "C" int hs_cuda_device_count(void) { return ggml_backend_cuda_get_device_count(); }

extern "C" ggml_backend_t hs_cuda_backend_init(int i) {
    if (i < 0 || i >= ggml_backend_cuda_get_device_count()) {
        return nullptr;
    }
    ggml_backend_t backend = nullptr;
    if (!guarded([&] { backend = ggml_backend_cuda_init(i); })) {
        (void) cudaGetLastError();
        return nullptr;
    }
    device * d = backend ? new (std::nothrow) device : nullptr;
    if (!d) {
        if (backend) {
            ggml_backend_free(backend);
        }
        return nullptr;
    }
    d->inner = backend->device;
    d->iface = backend->iface;
    d->dev = *d->inner;
    d->dev.iface.supports_op = supports_op;
    d->dev.iface.supports_buft = supports_buft;
    d->dev.iface.offload_op = offload_op;
    d->dev.iface.event_new = d->inner->iface.event_new ? event_new : nullptr;
    backend->device = &d->dev;
    backend->iface.graph_compute = graph_compute;
    backend->iface.free = free_backend;
    return backend;
}
