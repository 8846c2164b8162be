// Backends and buffer types of the CPU.
#define _GNU_SOURCE // sched_getaffinity, MADV_*
#include "backend.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ggml-cpu.h"
#include "status.h"

// Cores, not hyperthreads: two threads of one core share the units that attention and matrix products saturate. Falls back to the online count.
int32_t hs_physical_cores(void) {
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    int32_t n = 0;
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        long long seen[CPU_SETSIZE];
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &set)) continue;
            long long id = cpu;
            int part[2] = {-1, -1};
            static const char * const files[2] = {"core_id", "physical_package_id"};
            for (int i = 0; i < 2; i++) {
                char path[128];
                snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, files[i]);
                FILE * f = fopen(path, "r");
                if (!f) continue;
                if (fscanf(f, "%d", &part[i]) != 1) part[i] = -1;
                fclose(f);
            }
            if (part[0] >= 0 && part[1] >= 0) id = ((long long) part[1] << 32 | part[0]) + (1LL << 62);
            bool found = false;
            for (int32_t j = 0; j < n && !found; j++) found = seen[j] == id;
            if (!found) seen[n++] = id;
        }
    }
#endif
    if (n < 1) n = online > 0 ? (int32_t) online : 1;
    return n > GGML_MAX_N_THREADS ? GGML_MAX_N_THREADS : n;
}

static int check_threads(const char * name, int32_t n, hs_error * err) {
    if (n < 0 || n > GGML_MAX_N_THREADS) return hs_fail(err, HS_E_ARG, "%s: found %d, expected 0 to %d", name, n, GGML_MAX_N_THREADS);
    return HS_OK;
}

static int add_gpu(struct hs_backends * b, int32_t device, hs_error * err) {
    uint64_t free_bytes, total;
    hs_device_free_memory(device, &free_bytes, &total);
    ggml_backend_t backend = hs_device_backend_new(device);
    if (!backend) {
        return hs_fail(err, HS_E_MEMORY, "%s: cannot start a backend, %llu bytes of memory are free", hs_device_name(device), (unsigned long long) free_bytes);
    }
    b->backend[b->n++] = backend;
    return HS_OK;
}

int hs_backends_new(int32_t n_threads, int32_t n_threads_batch, const int32_t * gpus, int32_t n_gpus, struct hs_backends * out, hs_error * err) {
    memset(out, 0, sizeof *out);
    HS_TRY(check_threads("n_threads", n_threads, err));
    HS_TRY(check_threads("n_threads_batch", n_threads_batch, err));
    out->n_threads = n_threads ? n_threads : hs_physical_cores();
    out->n_threads_batch = n_threads_batch ? n_threads_batch : out->n_threads;
    for (int32_t i = 0; i < n_gpus; i++) {
        const int rc = add_gpu(out, gpus[i], err);
        if (rc != HS_OK) {
            hs_backends_free(out);
            return rc;
        }
    }
    ggml_backend_t cpu = ggml_backend_cpu_init();
    if (!cpu) {
        hs_backends_free(out);
        return hs_fail(err, HS_E_MEMORY, "cannot start the CPU backend");
    }
    out->backend[out->n++] = cpu;
    const int most = out->n_threads > out->n_threads_batch ? out->n_threads : out->n_threads_batch;
    struct ggml_threadpool_params tpp = ggml_threadpool_params_default(most);
    out->threadpool = ggml_threadpool_new(&tpp);
    if (!out->threadpool) {
        hs_backends_free(out);
        return hs_fail(err, HS_E_MEMORY, "cannot start %d threads", most);
    }
    ggml_backend_cpu_set_threadpool(cpu, out->threadpool);
    hs_backends_use_threads(out, true);
    return HS_OK;
}

void hs_backends_free(struct hs_backends * b) {
    for (int i = 0; i < b->n; i++) ggml_backend_free(b->backend[i]);
    if (b->threadpool) ggml_threadpool_free(b->threadpool);
    memset(b, 0, sizeof *b);
}

void hs_backends_use_threads(struct hs_backends * b, bool batch) {
    ggml_backend_cpu_set_n_threads(b->backend[b->n - 1], batch ? b->n_threads_batch : b->n_threads);
}

int hs_backends_check_fork(const struct hs_backends * b, bool batch, hs_error * err) {
#if defined(__GNUC__) && !defined(__clang__) // libomp starts new threads in a child, libgomp waits for the lost ones
    static _Thread_local pid_t process; // where this thread first had others work for it
    if ((batch ? b->n_threads_batch : b->n_threads) < 2) return HS_OK;
    if (process == 0) process = getpid();
    if (process != getpid()) {
        return hs_fail(err, HS_E_STATE, "process %ld was forked from %ld after this thread had evaluated there, and its %d worker threads are gone: "
            "evaluate in a new thread, with n_threads 1, or start processes by 'spawn'", (long) getpid(), (long) process,
            (batch ? b->n_threads_batch : b->n_threads) - 1);
    }
#else
    (void) b; (void) batch; (void) err;
#endif
    return HS_OK;
}

void hs_backends_set_abort(struct hs_backends * b, ggml_abort_callback cb, void * user) {
    ggml_backend_cpu_set_abort_callback(b->backend[b->n - 1], cb, user);
}

static ggml_backend_dev_t cpu_device(void) { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 // Linux 6.1, not in every C library yet
#endif

#ifdef __linux__
// Advice for the whole huge pages of a host buffer; it may fail.
static void advise(ggml_backend_buffer_t buf, int advice) {
    const uintptr_t huge = (uintptr_t) 2 << 20, base = (uintptr_t) ggml_backend_buffer_get_base(buf);
    const uintptr_t first = (base + huge - 1) / huge * huge, end = (base + ggml_backend_buffer_get_size(buf)) / huge * huge;
    if (ggml_backend_buffer_is_host(buf) && first < end) (void) madvise((void *) first, end - first, advice);
}

void hs_buffer_use_huge_pages(ggml_backend_buffer_t buf) { advise(buf, MADV_HUGEPAGE); }

void hs_buffer_move_to_huge_pages(ggml_backend_buffer_t buf) {
    advise(buf, MADV_HUGEPAGE);
    advise(buf, MADV_COLLAPSE);
}
#else
void hs_buffer_use_huge_pages(ggml_backend_buffer_t buf) { (void) buf; }

void hs_buffer_move_to_huge_pages(ggml_backend_buffer_t buf) { (void) buf; }
#endif

bool hs_cpu_can_multiply(enum ggml_type type) {
    return type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits_cpu(type)->vec_dot != NULL && ggml_blck_size(type) > 0;
}

ggml_backend_buffer_type_t hs_repack_buft(enum ggml_type type, const int64_t * ne, bool experts) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(cpu_device());
    ggml_backend_dev_get_extra_bufts_t get =
        (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t * list = get ? get(cpu_device()) : NULL;
    for (; list && *list; list++) {
        // AMX: on a virtual machine that offers it, ggml's tile kernels died of SIGILL (llama.cpp's too, same ggml code); nothing here can tell before.
        if (strcmp(ggml_backend_buft_name(*list), "AMX") == 0) continue;
        if (hs_device_multiplies(HS_ON_CPU, *list, type, ne, experts)) return *list;
    }
    return NULL;
}
