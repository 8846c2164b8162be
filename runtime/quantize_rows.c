// Rows from one type to another: each thread takes chunks of rows, makes them float, checks them, quantises them.
#include "quantize_rows.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

enum { CHUNK_VALUES = 1 << 16, MAX_THREADS = 512 };

struct job {
    enum ggml_type from, to;
    const uint8_t * src;
    uint8_t * dst;
    int64_t n_rows, n_per_row, rows_per_chunk;
    atomic_int_fast64_t next;            // first row nobody has taken
    atomic_int_fast64_t bad_in, bad_out; // a row with a value that is not finite: in the source, after quantising; -1: none
    atomic_bool no_memory;
};

static bool all_finite(const float * x, int64_t n) {
    bool ok = true;
    for (int64_t i = 0; i < n; i++) ok &= fabsf(x[i]) <= FLT_MAX;
    return ok;
}

static void * work(void * arg) {
    struct job * j = arg;
    const size_t from_row = ggml_row_size(j->from, j->n_per_row), to_row = ggml_row_size(j->to, j->n_per_row);
    float * buffer = NULL;
    if (j->from != GGML_TYPE_F32) {
        buffer = malloc((size_t) j->rows_per_chunk * (size_t) j->n_per_row * sizeof *buffer);
        if (!buffer) {
            atomic_store(&j->no_memory, true);
            return NULL;
        }
    }
    for (;;) {
        const int64_t row = atomic_fetch_add(&j->next, j->rows_per_chunk);
        if (row >= j->n_rows || atomic_load(&j->bad_in) >= 0 || atomic_load(&j->bad_out) >= 0) break;
        const int64_t n = j->n_rows - row < j->rows_per_chunk ? j->n_rows - row : j->rows_per_chunk;
        const uint8_t * src = j->src + (size_t) row * from_row;
        uint8_t * dst = j->dst + (size_t) row * to_row;
        const float * x = (const float *) (const void *) src;
        if (buffer) {
            ggml_get_type_traits(j->from)->to_float(src, buffer, n * j->n_per_row);
            x = buffer;
        }
        if (!all_finite(x, n * j->n_per_row)) {
            int64_t r = 0;
            while (all_finite(x + r * j->n_per_row, j->n_per_row)) r++;
            atomic_store(&j->bad_in, row + r);
            break;
        }
        ggml_quantize_chunk(j->to, x, dst, 0, n, j->n_per_row, NULL);
        if (!ggml_validate_row_data(j->to, dst, (size_t) n * to_row)) {
            atomic_store(&j->bad_out, row);
            break;
        }
    }
    free(buffer);
    return NULL;
}

int hs_quantize_rows(const char * name, enum ggml_type from, const void * src, enum ggml_type to, void * dst, int64_t first_row, int64_t n_rows,
                     int64_t n_per_row, int32_t n_threads, hs_error * err) {
    struct job j = { .from = from, .to = to, .src = src, .dst = dst, .n_rows = n_rows, .n_per_row = n_per_row };
    j.rows_per_chunk = n_per_row < CHUNK_VALUES ? CHUNK_VALUES / n_per_row : 1;
    atomic_init(&j.next, 0);
    atomic_init(&j.bad_in, -1);
    atomic_init(&j.bad_out, -1);
    atomic_init(&j.no_memory, false);
    ggml_quantize_init(to);              // its tables: once, before the threads need them

    pthread_t threads[MAX_THREADS];
    const int64_t n_chunks = (n_rows + j.rows_per_chunk - 1) / j.rows_per_chunk;
    int32_t n = 0;
    // this thread works too; one that cannot be started is one fewer
    while (n + 1 < n_threads && n + 1 < n_chunks && n < MAX_THREADS && pthread_create(&threads[n], NULL, work, &j) == 0) n++;
    work(&j);
    for (int32_t i = 0; i < n; i++) pthread_join(threads[i], NULL);

    const int64_t bad_in = atomic_load(&j.bad_in), bad_out = atomic_load(&j.bad_out);
    if (bad_in >= 0) {
        return hs_fail(err, HS_E_FORMAT, "tensor %s, row %" PRId64 ": found a NaN or infinite value, expected finite weights", name,
                       first_row + bad_in);
    }
    if (bad_out >= 0) {
        return hs_fail(err, HS_E_FORMAT, "tensor %s, from row %" PRId64 " on: found values too large for type %s", name, first_row + bad_out,
                       ggml_type_name(to));
    }
    // a thread without memory left its chunks to the others; only when none could work is there a rest
    if (atomic_load(&j.no_memory) && atomic_load(&j.next) < n_rows) {
        return hs_fail(err, HS_E_MEMORY, "tensor %s: cannot allocate the row buffers", name);
    }
    return HS_OK;
}
