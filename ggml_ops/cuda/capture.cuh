// Capture of small graphs: all launches of a decoded token, ggml's and ours, become one CUDA graph, replayed while the scheduler's graph is the same one.
// Replaces ggml's own capture, which would see each run of nodes between two of ours as a graph of its own. Saves the launches: some 700 for a 7B model.
#pragma once

#include <functional>
#include <mutex>

#include "launch.cuh"

// One replayed graph: the third computation of a scheduler's graph is captured (the first two fill the scratch pool), later ones replay it.
struct hs_replay {
    uint64_t uid, used; // the scheduler's number of the graph, 0: free; time of the last use
    int seen;
    bool never;         // a capture has failed
    cudaGraphExec_t exec;
};

// Of one backend: a few shapes, the least recently used makes room.
struct hs_replays {
    hs_replay at[8] = {};
    uint64_t clock = 0;
    hs_replay * capturing = nullptr;

    ~hs_replays();
    // Replay, capture or plainly run (run_all launches every node).
    ggml_status compute(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, const std::function<ggml_status()> & run_all);
    // After an error: was it in a capture? Then that is ended, and this graph is not captured again.
    bool abandon(ggml_backend_cuda_context & ctx);
};

// Held during a capture, and while a backend is freed.
std::mutex & hs_capture_mutex();

// ggml shall launch this run of nodes plainly.
void hs_no_capture_of_part(ggml_backend_cuda_context & ctx, const ggml_cgraph * part);
