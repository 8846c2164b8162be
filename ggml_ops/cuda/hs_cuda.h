// ggml's CUDA backend with our ops: one backend, one stream, one scheduler split (DESIGN, "the decorator").
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// Number of CUDA devices; 0 without a driver.
int hs_cuda_device_count(void);
// An ordinary CUDA backend of device i that also runs the nodes of hs_ops.h (free with ggml_backend_free). NULL: no such device, or no memory.
ggml_backend_t hs_cuda_backend_init(int i);
// Run the kernels that a device of compute capability cc (major * 100 + minor * 10) would get, where the device's is higher; 0: no limit. Not
// thread-safe: for tests and benches.
void hs_cuda_limit_capability(int cc);

#ifdef __cplusplus
}
#endif
