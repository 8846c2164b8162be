// Which graphs are captured, and their replay.
#include "capture.cuh"

#include "ggml-impl.h"
#include "mmq.cuh"
#include "mmvq.cuh"

#define HS_CAPTURE_TOKENS 64 // larger graphs run for so long that launches hide behind kernels
#define HS_CAPTURE_AFTER 2   // plain runs before

// Nothing in it waits for the device: ggml's product of many tokens with experts does, when it sorts them on the host.
static bool can_capture(const ggml_backend_cuda_context & ctx, const ggml_cgraph * graph) {
    const int cc = ggml_cuda_info().devices[ctx.device].cc;
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_MUL_MAT && node->ne[1] > HS_CAPTURE_TOKENS) {
            return false;
        }
        if (node->op == GGML_OP_MUL_MAT_ID) {
            const ggml_type type = node->src[0]->type;
            const bool vectors = ggml_is_quantized(type) && node->ne[2] <= get_mmvq_mmid_max_batch(type, cc);
            if (node->ne[2] > HS_CAPTURE_TOKENS || (!vectors && !ggml_cuda_should_use_mmq(type, cc, node->src[1]->ne[2], node->src[0]->ne[2]))) {
                return false;
            }
        }
    }
    return true;
}

std::mutex & hs_capture_mutex() {
    static std::mutex mutex;
    return mutex;
}

static void forget(hs_replay & r) {
    if (r.exec) {
        CUDA_CHECK(cudaGraphExecDestroy(r.exec));
    }
    r = {};
}

hs_replays::~hs_replays() {
    for (hs_replay & r : at) {
        if (r.exec) {
            (void) cudaGraphExecDestroy(r.exec);
        }
    }
}

ggml_status hs_replays::compute(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, const std::function<ggml_status()> & run_all) {
    ggml_cuda_set_device(ctx.device);
    if (graph->uid == 0) { // a part of a graph, or none of a scheduler's
        return run_all();
    }
    hs_replay * r = &at[0];
    for (hs_replay & x : at) {
        if (x.uid == graph->uid) {
            r = &x;
            break;
        }
        r = x.used < r->used ? &x : r;
    }
    if (r->uid != graph->uid) {
        forget(*r);
        r->uid = graph->uid;
    }
    r->used = ++clock;
    if (!r->exec && (r->never || r->seen++ < HS_CAPTURE_AFTER || !can_capture(ctx, graph))) {
        return run_all();
    }
    if (!r->exec) {
        const std::lock_guard<std::mutex> lock(hs_capture_mutex());
        capturing = r; // until the graph is made: see abandon
        CUDA_CHECK(cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeRelaxed));
        const ggml_status status = run_all();
        cudaGraph_t captured = nullptr;
        CUDA_CHECK(cudaStreamEndCapture(ctx.stream(), &captured));
        const cudaError_t error = status == GGML_STATUS_SUCCESS ? cudaGraphInstantiate(&r->exec, captured, 0) : cudaSuccess;
        CUDA_CHECK(cudaGraphDestroy(captured));
        CUDA_CHECK(error);
        capturing = nullptr;
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    CUDA_CHECK(cudaGraphLaunch(r->exec, ctx.stream()));
    return GGML_STATUS_SUCCESS;
}

bool hs_replays::abandon(ggml_backend_cuda_context & ctx) {
    if (!capturing) {
        return false;
    }
    capturing->never = true;
    capturing->exec = nullptr;
    capturing = nullptr;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(ctx.stream(), &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
        cudaGraph_t captured = nullptr;
        if (cudaStreamEndCapture(ctx.stream(), &captured) == cudaSuccess && captured) {
            (void) cudaGraphDestroy(captured);
        }
    }
    return true;
}

void hs_no_capture_of_part(ggml_backend_cuda_context & ctx, const ggml_cgraph * part) {
#ifdef USE_CUDA_GRAPH
    ctx.cuda_graph(part->nodes[0])->disable_due_to_gpu_arch = true;
#else
    GGML_UNUSED(ctx);
    GGML_UNUSED(part);
#endif
}
