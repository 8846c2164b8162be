// Attention of few queries: which nodes the kernel of decode_kernel.cuh takes, and how many thread blocks share the keys of a (token, KV head).
#include "decode.cuh"
#include "early.cuh"

#define HS_DECODE_MAX_SPLITS 256

static hs_decode_shape shape_of(const hs_dev_attn & a) {
    int n_rep = a.b[0].n_rep;
    const ggml_type type = a.b[0].k.type;
    for (int n = 0; n < a.n_branch; n++) {
        const hs_dev_branch & b = a.b[n];
        n_rep = std::max(n_rep, b.n_rep);
        // a key's page and slot serve both caches; rows lie one behind the other, and are copied in pieces of 16 bytes (f16)
        const bool like = b.k.type == type && b.v.type == type && b.k.n_slots == b.v.n_slots && b.k.table == b.v.table;
        const bool dense = b.k.nb1 == (int64_t) ggml_row_size(type, a.d_qk) && b.v.nb1 == (int64_t) ggml_row_size(type, a.d_v);
        const int64_t odd = type == GGML_TYPE_F16 ? b.k.nb2 | b.k.nb3 | b.v.nb2 | b.v.nb3 : 0;
        if (!like || !dense || (odd | (int64_t) b.k.data | (int64_t) b.v.data) % 16 != 0) {
            return {};
        }
    }
    if (a.n_tokens > HS_DECODE_TOKENS || n_rep > HS_DECODE_REP) {
        return {};
    }
    return type == GGML_TYPE_F16 ? hs_decode_f16(a.d_qk, a.d_v, n_rep) : type == GGML_TYPE_Q8_0 ? hs_decode_q8(a.d_qk, a.d_v, n_rep) : hs_decode_shape {};
}

bool hs_cuda_decode_takes(const hs_dev_attn & a, int cc) { return cc >= 800 && shape_of(a).kernel; }

// Tiles of a branch at the longest context that its cache holds.
static int most_tiles(const hs_decode & a, int n) {
    const hs_dev_cache & k = a.b[n].k;
    const int64_t slots = k.table ? k.max_pages * k.n_slots : a.b[n].window; // a ring that is long enough
    return hs_n_tiles(a, n, (int) std::min(slots, (int64_t) INT32_MAX) - 1);
}

// Thread blocks a (token, KV head): as many as end soonest when the device runs `slots` at a time, each costing the merge a little.
static int splits_of(int rows, int most, int slots) {
    int best = 1;
    double cost = 1e30;
    for (int s = 1; s <= std::min(most, HS_DECODE_MAX_SPLITS); s++) {
        const double c = double((int64_t(rows) * s + slots - 1) / slots) / s * (1 + 0.01 * s);
        if (c < cost) {
            best = s;
            cost = c;
        }
    }
    return best;
}

static void plan(hs_decode & a, const hs_decode_shape & shape, size_t shared_bytes, int n_sm) {
    a.warps = (int) std::min<size_t>(HS_DECODE_WARPS, shared_bytes / shape.warp_bytes);
    // an SM keeps 1 KiB a thread block for itself
    const int at_a_time = (int) std::min<size_t>(shape.blocks, (shared_bytes + 1024) / (a.warps * shape.warp_bytes + 1024));
    for (int n = 0; n < a.n_branch; n++) {
        const bool sparse = a.b[n].sel, scores = n == 0 && a.scores;
        a.unit[n] = sparse || scores ? a.block_size : HS_TILE;
        a.tiles[n] = hs_tiles(a.unit[n]);
        a.run[n] = scores ? (a.tiles[n] % 2 ? a.tiles[n] : 2) : sparse || a.b[n].window < INT32_MAX ? 1 : 2;
        a.by_unit[n] = hs_divisor_of(a.unit[n]);
        a.by_tiles[n] = hs_divisor_of(a.tiles[n]);
        a.by_slots[n] = hs_divisor_of(a.b[n].k.n_slots);
        a.by_least[n] = hs_divisor_of(hs_least(a, n));
    }
    a.runs = a.tiles[0] / a.run[0];
    const int tiles = std::max(most_tiles(a, 0), 1), least = 2 * a.warps; // tiles that make a thread block worth while
    a.splits[0] = splits_of(a.n_tokens * a.b[0].n_head_kv, (tiles + least - 1) / least, n_sm * at_a_time);
    if (a.n_branch > 1) {
        const int each = std::max((tiles + a.splits[0] - 1) / a.splits[0], least);
        a.splits[1] = (most_tiles(a, 1) + each - 1) / each;
    }
    for (int n = 0; n < a.n_branch; n++) {
        a.by_splits[n] = hs_divisor_of(a.splits[n]);
    }
    a.direct = a.n_branch == 1 && a.splits[0] == 1 && !a.scores;
}

void hs_cuda_decode(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    const hs_decode_shape shape = shape_of(given);
    const auto & device = ggml_cuda_info().devices[ctx.device];
    hs_decode a = {};
    static_cast<hs_dev_attn &>(a) = given;
    plan(a, shape, device.smpbo, device.nsm);
    const size_t rows = (size_t) a.n_tokens * a.n_head, shared = shape.warp_bytes * a.warps;
    ggml_cuda_pool_alloc<float> raw(ctx.pool()), part0(ctx.pool()); // given back in the opposite order, as the pool wants it
    ggml_cuda_pool_alloc<float2> ml0(ctx.pool());
    ggml_cuda_pool_alloc<float> part1(ctx.pool());
    ggml_cuda_pool_alloc<float2> ml1(ctx.pool());
    if (a.scores) {
        a.raw = raw.alloc(rows * a.n_blocks * a.runs);
    }
    if (!a.direct) {
        a.part[0] = part0.alloc(rows * a.splits[0] * a.d_v);
        a.ml[0] = ml0.alloc(rows * a.splits[0]);
    }
    if (a.n_branch > 1) {
        a.part[1] = part1.alloc(rows * a.splits[1] * a.d_v);
        a.ml[1] = ml1.alloc(rows * a.splits[1]);
    }
    CUDA_CHECK(cudaFuncSetAttribute((const void *) shape.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared));
    const unsigned blocks = a.splits[0] * a.b[0].n_head_kv + a.splits[1] * a.b[1].n_head_kv;
    hs_launch_early(ctx, true, shape.kernel, dim3(blocks, a.n_tokens), 32 * a.warps, shared, a);
    if (!a.direct) {
        hs_cuda_decode_merge(ctx, a);
    }
}
