// A session's backends: the GPUs of its model and the CPU; and the buffer types of CPU weights.
#pragma once

#include "devices.h"

#define HS_MAX_BACKENDS (HS_MAX_DEVICES + 1)

struct hs_backends {
    ggml_backend_t backend[HS_MAX_BACKENDS];   // the CPU is the last, as ggml's scheduler wants it
    int            n;
    struct ggml_threadpool * threadpool;       // owned here so that a decode step allocates nothing
    int            n_threads, n_threads_batch;
};

// n_threads 0: physical cores that this process may use. gpus: device numbers. HS_E_ARG, HS_E_MEMORY.
int  hs_backends_new(int32_t n_threads, int32_t n_threads_batch, const int32_t * gpus, int32_t n_gpus, struct hs_backends * out, hs_error * err);
void hs_backends_free(struct hs_backends * b);
// Threads for the next graph: the decode number for one token a sequence, else the batch number.
void hs_backends_use_threads(struct hs_backends * b, bool batch);
// After fork() a thread that has used others waits for ever for the ones it lost: HS_E_STATE instead.
int  hs_backends_check_fork(const struct hs_backends * b, bool batch, hs_error * err);
// Stop the running graph when cb returns true (asked between nodes).
void hs_backends_set_abort(struct hs_backends * b, ggml_abort_callback cb, void * user);

int32_t hs_physical_cores(void);

// The buffer type for a weight that is only ever the left side of a matrix product (`experts`: of ggml_mul_mat_id): one of ggml's repacked CPU
// types where it can run this type and shape, else NULL (keep it as it stands in the file).
ggml_backend_buffer_type_t hs_repack_buft(enum ggml_type type, const int64_t * ne, bool experts);
// Ask for huge pages behind a host buffer that is about to be filled: fewer TLB misses where weights and caches stream through. No-op elsewhere.
void hs_buffer_use_huge_pages(ggml_backend_buffer_t buf);
// The same for a buffer that is in use: what it has of small pages is moved (by Linux 6.1 and later at once, else in the background).
void hs_buffer_move_to_huge_pages(ggml_backend_buffer_t buf);
// Can the CPU multiply by weights of this type?
bool hs_cpu_can_multiply(enum ggml_type type);
