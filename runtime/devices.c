// Devices: what there is, and what each can do.
#include "devices.h"

#include <stdio.h>

#include "status.h"
#ifdef HS_CUDA
#include "hs_cuda.h"
#endif

// NULL: a GPU that is not there.
static ggml_backend_dev_t find(int32_t device) {
    if (device == HS_ON_CPU) return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    char name[16];
    snprintf(name, sizeof name, "CUDA%d", device);
    return device < hs_gpu_count() ? ggml_backend_dev_by_name(name) : NULL;
}

int32_t hs_gpu_count(void) {
#ifdef HS_CUDA
    const int n = hs_cuda_device_count();
    return n > HS_MAX_DEVICES ? HS_MAX_DEVICES : n;
#else
    return 0;
#endif
}

const char * hs_device_name(int32_t device) {
    ggml_backend_dev_t dev = find(device);
    return dev ? ggml_backend_dev_name(dev) : "";
}

ggml_backend_buffer_type_t hs_device_buft(int32_t device) { return ggml_backend_dev_buffer_type(find(device)); }

void hs_device_free_memory(int32_t device, uint64_t * free, uint64_t * total) {
    size_t f = 0, t = 0;
    ggml_backend_dev_memory(find(device), &f, &t);
    *free = f;
    *total = t;
}

ggml_backend_t hs_device_backend_new(int32_t device) {
#ifdef HS_CUDA
    return hs_cuda_backend_init(device);
#else
    (void) device;
    return NULL;
#endif
}

enum use { MULTIPLY, MULTIPLY_EXPERTS, LOOK_UP };

// Asked of the device with a node that is never computed, as the scheduler will ask later.
static bool runs(int32_t device, ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t * ne, enum use use) {
    struct ggml_init_params ip = { .mem_size = ggml_tensor_overhead() * 8, .no_alloc = true };
    struct ggml_context * ctx = ggml_init(ip);
    ggml_backend_buffer_t empty = ggml_backend_buft_alloc_buffer(buft, 0);
    bool ok = false;
    if (ctx && empty) {
        struct ggml_tensor * w = ggml_new_tensor_3d(ctx, type, ne[0], ne[1], ne[2]);
        struct ggml_tensor * node;
        if (use == MULTIPLY_EXPERTS) {
            struct ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ne[0], 1, 512);
            node = ggml_mul_mat_id(ctx, w, x, ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, 512));
        } else if (use == LOOK_UP) {
            node = ggml_get_rows(ctx, w, ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 512));
        } else {
            node = ggml_mul_mat(ctx, w, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne[0], 512));
        }
        w->buffer = empty;
        ok = ggml_backend_dev_supports_op(find(device), node);
    }
    if (empty) ggml_backend_buffer_free(empty);
    if (ctx) ggml_free(ctx);
    return ok;
}

bool hs_device_multiplies(int32_t device, ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t * ne, bool experts) {
    return runs(device, buft, type, ne, experts ? MULTIPLY_EXPERTS : MULTIPLY);
}

bool hs_device_looks_up(int32_t device, ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t * ne) { return runs(device, buft, type, ne, LOOK_UP); }

int32_t hs_device_count(void) {
    hs_log_init();
    return hs_gpu_count() + 1;
}

int hs_device_get(int32_t i, hs_device_info * out) {
    const int32_t n = hs_gpu_count();
    if (i < 0 || i > n) return HS_E_ARG;
    const int32_t device = i < n ? i : HS_ON_CPU;
    *out = (hs_device_info) { .name = hs_device_name(device), .description = ggml_backend_dev_description(find(device)) };
    hs_device_free_memory(device, &out->memory_free, &out->memory_total);
    return HS_OK;
}
