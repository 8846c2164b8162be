// hysparse.h - the whole public C API of pyhysparse. cffi reads this file too: between the two BEGIN/END lines only plain declarations.
//
// Conventions. Calls that can fail return HS_OK (0) or a negative hs_status and fill *err (err may be NULL). Unless a call says otherwise, a
// failed call changed nothing and made no object. Strings are UTF-8, owned by the object that returned them. Token, position and sequence
// numbers are int32. Objects: hs_gguf (a checked file), hs_model (weights, immutable, shareable), hs_session (caches of n_seq sequences;
// one thread at a time, a second one gets HS_E_BUSY), hs_sampler. Free in any order except: sessions before their model.
#ifndef HYSPARSE_H
#define HYSPARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// BEGIN cdef
typedef enum hs_status {
    HS_OK = 0,
    HS_E_ARG = -1,       // an argument is out of its range
    HS_E_IO = -2,        // a file cannot be opened, read or written
    HS_E_FORMAT = -3,    // a file is malformed (GGUF, session file)
    HS_E_MODEL = -4,     // a well-formed file describes a model that is inconsistent or not supported
    HS_E_MEMORY = -5,    // an allocation failed; the message has the size
    HS_E_FULL = -6,      // the context (pages) is used up
    HS_E_STATE = -7,     // a session file belongs to another model or other session parameters; hs_eval: the process was forked meanwhile
    HS_E_BUSY = -8,      // another thread is inside this session
    HS_E_CANCELLED = -9, // hs_session_cancel, or a callback, stopped the call
    HS_E_INTERNAL = -10  // a bug of ours or of a backend
} hs_status;

typedef struct hs_error { int32_t code; char message[1020]; } hs_error;

typedef struct hs_gguf    hs_gguf;
typedef struct hs_model   hs_model;
typedef struct hs_session hs_session;
typedef struct hs_sampler hs_sampler;

const char * hs_version(void);                    // "0.1.0 (ggml 0.20.2; CPU: AVX512 ...; kernels: avx512)"
typedef void (*hs_log_fn)(int32_t level, const char * text, void * user);   // level: 1 debug 2 info 3 warning 4 error
void hs_log_set(hs_log_fn fn, void * user);       // ggml's and our messages, process-wide; default: warnings and errors to stderr

// --- GGUF files: metadata and tensor table, every length, type and offset checked -------------------------------------------------
typedef enum hs_gguf_type { HS_GGUF_U8, HS_GGUF_I8, HS_GGUF_U16, HS_GGUF_I16, HS_GGUF_U32, HS_GGUF_I32, HS_GGUF_F32, HS_GGUF_BOOL,
                            HS_GGUF_STR, HS_GGUF_ARR, HS_GGUF_U64, HS_GGUF_I64, HS_GGUF_F64 } hs_gguf_type;
typedef struct hs_tensor_info {
    const char * name; const char * type;         // ggml type name: "q4_0", "f32" ...
    int64_t ne[4]; int32_t n_dims; uint64_t size, offset; int32_t file; // bytes; offset from the start of split file number `file`
} hs_tensor_info;
int      hs_gguf_open(const char * path, bool use_mmap, hs_gguf ** out, hs_error * err); // any shard of a split file opens them all
void     hs_gguf_free(hs_gguf * g);
int64_t  hs_gguf_n_kv(const hs_gguf * g);
int64_t  hs_gguf_find(const hs_gguf * g, const char * key);         // index or -1
const char * hs_gguf_key(const hs_gguf * g, int64_t i);
hs_gguf_type hs_gguf_kv_type(const hs_gguf * g, int64_t i);         // HS_GGUF_ARR for arrays
hs_gguf_type hs_gguf_arr_type(const hs_gguf * g, int64_t i);
uint64_t hs_gguf_arr_len(const hs_gguf * g, int64_t i);
// The value's bytes as they stand in the file, already checked: scalars little-endian; a string without its length; an array's elements, where
// a string element is u64 length + bytes.
const void * hs_gguf_raw(const hs_gguf * g, int64_t i, size_t * size);
int64_t  hs_gguf_n_tensors(const hs_gguf * g);
int      hs_gguf_tensor(const hs_gguf * g, int64_t i, hs_tensor_info * out);
int64_t  hs_gguf_n_bytes(const hs_gguf * g);                        // all files together

// --- Devices ------------------------------------------------------------------------------------------------------------------------
typedef struct hs_device_info {
    const char * name, * description;             // "CUDA0", "NVIDIA H100 80GB HBM3"; the last device is "CPU"
    uint64_t memory_free, memory_total;           // bytes, at the time of asking
} hs_device_info;
int32_t hs_device_count(void);                    // GPUs that this build has kernels for, and the CPU: at least 1
int  hs_device_get(int32_t i, hs_device_info * out);

struct hs_session_params;

// --- Model --------------------------------------------------------------------------------------------------------------------------
typedef struct hs_model_params {
    bool use_mmap, repack, check_tensors;         // repack: weights copied to the layout of the fastest CPU kernels; check_tensors: refuse NaN/Inf weights
    int32_t oracle;                               // 0 off, 1 the list in the file (or the demo's calibrated list), 2 the list given here
    const int32_t * oracle_full_layers; int32_t n_oracle_full_layers; // ascending, the first is 0
    int32_t oracle_block_size, oracle_top_k_tokens, oracle_window;    // 0: 64, 1024, 128 (or the file's)
    bool (*progress)(float fraction, void * user); void * progress_user; // false cancels the load
    // Placement. Layers count from the output: n_gpu_layers 1 is the output alone, n_layer + 1 is everything (llama.cpp's -ngl).
    int32_t n_gpu_layers;                         // -1: as many as fit beside the caches of `fit` (default); 0: none; any larger number: all
    int32_t n_cpu_moe;                            // experts of the first so many layers stay on the CPU; -1: of all layers
    const char * devices;                         // "CUDA0,CUDA1": those, in that order; NULL: every GPU; "none": the CPU
    const float * tensor_split; int32_t n_tensor_split; // share of each device; NULL: by free memory
    const struct hs_session_params * fit;         // the session to leave room for when n_gpu_layers is -1; NULL: the default one
} hs_model_params;
hs_model_params hs_model_default_params(void);
int  hs_model_load(const char * path, const hs_model_params * p, hs_model ** out, hs_error * err);
void hs_model_free(hs_model * m);

typedef struct hs_model_info {
    const char * arch, * name, * ftype;           // "hysparse", "llama" ...; general.name or ""; "Q8_0" ...
    int32_t n_layer, n_embd, n_vocab, n_head, n_ctx_train, n_expert, n_expert_used;
    int32_t block_size, top_k_blocks, window;     // 0 where the model has none
    bool oracle;                                  // oracle mode is on
    uint64_t n_params, weight_bytes;
    uint64_t fingerprint;                         // of hyperparameters, layer plan and tensor table (session files)
    int32_t n_gpu_layers;                         // as placed; n_layer + 1 with the output
    const char * placement;                       // one line for people: "CUDA0: layers 0-35, output (4.6 GiB); CPU: token_embd (0.3 GiB)"
} hs_model_info;
void hs_model_info_get(const hs_model * m, hs_model_info * out);
const hs_gguf * hs_model_gguf(const hs_model * m);

// One row of the layer plan (SPEC 5): the table that graph, caches, memory report and `inspect` read.
typedef struct hs_layer_info {
    const char * kind;                            // "full", "sparse", "sliding"
    int32_t kv_source, selection_source;          // layer whose paged cache / block selection the global branch reads; -1 none
    const char * local;                           // "none", "own" (window branch with a ring), "forced" (block 0 and window, one softmax)
    bool emits_scores, owns_pages, owns_ring;
    int32_t window, n_head, n_head_kv, head_dim_k, head_dim_v, n_rot;
    const char * gate;                            // "none", "head", "channel"
    bool sinks, sparse_sinks, qk_norm, moe;
    float rope_freq_base;
    const char * device;                          // where its weights and caches lie: "CPU", "CUDA0"
    bool cpu_moe;                                 // but its experts lie in host memory
} hs_layer_info;
int hs_model_layer(const hs_model * m, int32_t il, hs_layer_info * out);

// --- Session ------------------------------------------------------------------------------------------------------------------------
typedef struct hs_session_params {
    int32_t n_ctx;                                // tokens held by all sequences together (paged); 0: from the model
    int32_t n_seq, n_batch, n_ubatch;             // 1, 2048, 512
    int32_t n_threads, n_threads_batch;           // 0: physical cores / same as n_threads
    const char * type_k, * type_v;                // "f32", "f16" (default), "q8_0"
    int32_t n_checkpoints;                        // ring checkpoints kept a sequence (32); 0: rewinding recomputes from the start
    bool use_ref;                                 // the ops' scalar references instead of the kernels (to find a wrong kernel)
} hs_session_params;
hs_session_params hs_session_default_params(void);
int  hs_session_new(hs_model * m, const hs_session_params * p, hs_session ** out, hs_error * err);
void hs_session_free(hs_session * s);
void hs_session_params_get(const hs_session * s, hs_session_params * out);   // as resolved

typedef struct hs_memory {
    uint64_t weights, pages, rings, compute, checkpoints;         // bytes allocated
    uint64_t page_bytes_per_token, ring_bytes_per_seq;
    uint64_t full_attention_bytes_per_token;                      // what full attention everywhere would take, same cache types
    int32_t n_pages, page_size;
} hs_memory;
// What a session with these parameters would allocate (compute and checkpoints 0), from the layer plan alone; equal to what hs_session_memory reports.
int  hs_memory_plan(const hs_model * m, const hs_session_params * p, hs_memory * out, hs_error * err);
void hs_session_memory(const hs_session * s, hs_memory * out);
typedef struct hs_device_memory { const char * device; uint64_t weights, pages, rings, compute; } hs_device_memory; // bytes
// The same by device: fills at most n_max rows, returns how many there are. Their sums are hs_memory's figures.
int32_t hs_session_device_memory(const hs_session * s, hs_device_memory * out, int32_t n_max);

// Append n tokens, token i to sequence seq[i] (seq NULL: all to 0) at its next position; any n <= n_ctx, split in ubatches inside.
// want[i] != 0 (want NULL: the last token only): one row of n_vocab f32 logits is written to `logits`, rows in token order; logits may be NULL if
// no row is wanted. On failure the ubatches before the failing one stay appended, the failing one is not: hs_seq_len tells.
int  hs_eval(hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, const int8_t * want, float * logits, hs_error * err);
void hs_session_cancel(hs_session * s);           // any thread: the running call ends with HS_E_CANCELLED within one graph node (on a GPU: within one ubatch)

int32_t hs_seq_len(const hs_session * s, int32_t seq);                        // tokens held; -1: no such sequence
int  hs_seq_tokens(const hs_session * s, int32_t seq, int32_t * out, int32_t n_max); // copies min(len, n_max), returns len
// Keep the first n tokens. Window rings are restored from a checkpoint, or recomputed: that evaluates tokens, so it may be cancelled, or end in
// HS_E_FULL when pages shared with a fork must be copied and none is free. The sequence is then shorter than n, never wrong.
int  hs_seq_rewind(hs_session * s, int32_t seq, int32_t n, hs_error * err);
int  hs_seq_fork(hs_session * s, int32_t src, int32_t dst, hs_error * err);   // dst becomes src: pages shared until written
int  hs_seq_remove(hs_session * s, int32_t seq, hs_error * err);              // empty it, its pages go back
int  hs_seq_checkpoint(hs_session * s, int32_t seq, hs_error * err);          // save the rings at the present length (also done by itself)
int  hs_seq_save(hs_session * s, int32_t seq, const char * path, hs_error * err);     // atomic: temporary name, then rename
int  hs_seq_load(hs_session * s, int32_t seq, const char * path, hs_error * err);     // on failure the sequence is empty
int32_t hs_session_free_pages(const hs_session * s);

// Called for every named graph node of an evaluation, name like "attn_out-3"; data: f32, ne as in ggml. Return false to cancel. NULL: off.
typedef bool (*hs_capture_fn)(const char * name, const int64_t * ne, const float * data, void * user);
int  hs_session_capture(hs_session * s, hs_capture_fn fn, void * user, hs_error * err);

// --- Sampling: llama.cpp's chain, order, names and defaults ---------------------------------------------------------------------------
typedef struct hs_sampler_params {
    uint32_t seed;                                // 0xFFFFFFFF: random
    int32_t n_prev, n_probs, min_keep;            // 64, 0, 0
    float temp, dynatemp_range, dynatemp_exponent;          // 0.8 (<= 0: greedy), 0, 1
    int32_t top_k; float top_p, min_p, typ_p, top_n_sigma;  // 40 (<= 0: all), 0.95, 0.05, 1, -1 (off)
    float xtc_probability, xtc_threshold;                   // 0, 0.1
    int32_t penalty_last_n; float penalty_repeat, penalty_freq, penalty_present;   // 64 (0 off, -1 context), 1, 0, 0
    float dry_multiplier, dry_base; int32_t dry_allowed_length, dry_penalty_last_n; // 0, 1.75, 2, 64 (-1 context)
    int32_t mirostat; float mirostat_tau, mirostat_eta;     // 0 | 1 | 2, 5, 0.1
    const int32_t * logit_bias_token; const float * logit_bias; int32_t n_logit_bias;
    const int32_t * dry_breakers; const int32_t * dry_breaker_len; int32_t n_dry_breakers; // token sequences, concatenated, that end a DRY match
    const char * samplers;                        // order, "edskypmxt" (NULL: that); unknown letter: HS_E_ARG
} hs_sampler_params;
hs_sampler_params hs_sampler_default_params(void);
int  hs_sampler_new(int32_t n_vocab, const hs_sampler_params * p, hs_sampler ** out, hs_error * err);   // copies what p points to
void hs_sampler_free(hs_sampler * s);
int  hs_sampler_sample(hs_sampler * s, const float * logits, int32_t * token, hs_error * err); // logits f32 [n_vocab], not changed; NaN: HS_E_ARG
// The distribution that the last sample was drawn from, most probable first: fills ids/probs, returns the count (<= n_max).
int32_t hs_sampler_candidates(const hs_sampler * s, int32_t * ids, float * probs, int32_t n_max);
int  hs_sampler_accept(hs_sampler * s, int32_t token, hs_error * err);        // a token of the text (prompt too): for penalties and DRY
void hs_sampler_reset(hs_sampler * s);                                        // history, mirostat state and random state as new
uint32_t hs_sampler_seed(const hs_sampler * s);                               // the seed in use (after random choice)

// --- Quantising -----------------------------------------------------------------------------------------------------------------------
typedef struct hs_quantize_params {
    int32_t n_threads;                            // 0: all cores
    bool allow_requantize, leave_output_tensor, pure, dry_run;
    const char * output_tensor_type, * token_embedding_type;       // NULL: by the mix
    bool (*progress)(int64_t done, int64_t total, const char * tensor, void * user); void * progress_user; // bytes; false cancels
} hs_quantize_params;
hs_quantize_params hs_quantize_default_params(void);
// type: "Q4_0" "Q4_1" "Q5_0" "Q5_1" "Q8_0" "Q2_K" "Q3_K_S/_M/_L" "Q4_K_S/_M" "Q5_K_S/_M" "Q6_K" "IQ4_NL" "IQ4_XS" "F16" "BF16" "F32" "COPY".
// Writes a temporary file and renames it; refuses in == out.
int  hs_quantize(const char * path_in, const char * path_out, const char * type, const hs_quantize_params * p, uint64_t * size_out, hs_error * err);
// END cdef

#ifdef __cplusplus
}
#endif
#endif
