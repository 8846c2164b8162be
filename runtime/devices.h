// The devices of this build: GPUs that our ops have kernels for, numbered as ggml numbers them, and the CPU. A further kind of GPU joins in devices.c
// and nowhere else.
#pragma once

#include "ggml-backend.h"
#include "hysparse.h"

#define HS_MAX_DEVICES 16 // GPUs that one model is spread over
#define HS_ON_CPU (-1)    // a device number: the CPU

int32_t hs_gpu_count(void);
// These take a GPU's number, or HS_ON_CPU.
const char * hs_device_name(int32_t device);
ggml_backend_buffer_type_t hs_device_buft(int32_t device);
void hs_device_free_memory(int32_t device, uint64_t * free, uint64_t * total);
// A backend of a GPU that also runs our ops. NULL: no memory for it.
ggml_backend_t hs_device_backend_new(int32_t device);
// Can the device multiply activations by a matrix [ne0, ne1] of this type (`experts`: by ne2 of them, chosen by ids) in a buffer of buft?
bool hs_device_multiplies(int32_t device, ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t * ne, bool experts);
// Can it look rows of such a matrix up?
bool hs_device_looks_up(int32_t device, ggml_backend_buffer_type_t buft, enum ggml_type type, const int64_t * ne);
