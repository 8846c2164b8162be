// Session files: one sequence's tokens, pages and rings, so that a long prompt need not be evaluated again.
//
// Little-endian. Header (struct file_header), tokens i32[len], then for each layer with pages K then V: [n_head_kv][len] rows; then the rings as a
// checkpoint holds them (kv_rings.c). Last 8 bytes: FNV-1a of all before. Written to a temporary name and renamed; everything is checked against the
// header, the model and the file's size before the sequence is touched.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hash.h"
#include "session.h"
#include "status.h"

static const char file_magic[8] = {'H', 'S', 'S', 'E', 'Q', '0', '0', '1'};

struct file_header {
    char     magic[8];
    uint32_t version, header_size;
    uint64_t fingerprint;
    int32_t  type_k, type_v, page_size, window, len, reserved;
    uint64_t pages_bytes, rings_bytes;
};

// --- a checksummed stream --------------------------------------------------------------------------------------------------------------

struct stream { FILE * f; uint64_t hash; bool failed; };

static void put(struct stream * st, const void * data, size_t n) {
    if (st->failed || n == 0) return;
    st->hash = hs_hash(st->hash, data, n);
    st->failed = fwrite(data, 1, n, st->f) != n;
}

static void get(struct stream * st, void * data, size_t n) {
    if (st->failed || n == 0) return;
    st->failed = fread(data, 1, n, st->f) != n;
    if (!st->failed) st->hash = hs_hash(st->hash, data, n);
}

// --- pages <-> stream: each KV head's rows of the sequence in position order, page by page -----------------------------------------------

static uint64_t pages_bytes(const struct hs_kv * kv, int32_t len) {
    uint64_t n = 0;
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        if (!kv->plan->layers[il].owns_pages) continue;
        n += (uint64_t) (kv->k[il]->nb[1] + kv->v[il]->nb[1]) * (uint64_t) kv->k[il]->ne[2] * (uint64_t) len;
    }
    return n;
}

static void move_pages(struct hs_session * s, int32_t seq, int32_t len, struct stream * st, bool load) {
    struct hs_kv * kv = &s->kv;
    for (int32_t il = 0; il < kv->plan->n_layer; il++) {
        if (!kv->plan->layers[il].owns_pages) continue;
        for (int is_v = 0; is_v < 2; is_v++) {
            struct ggml_tensor * t = (is_v ? kv->v : kv->k)[il];
            for (int64_t h = 0; h < t->ne[2]; h++) {
                for (int32_t j = 0; j < len && !st->failed; j += kv->page_size) {
                    const int32_t n = len - j < kv->page_size ? len - j : kv->page_size;
                    const size_t at = (size_t) kv->seq[seq].table[j / kv->page_size] * t->nb[3] + (size_t) h * t->nb[2], size = (size_t) n * t->nb[1];
                    if (load) {
                        get(st, kv->staging, size);
                        ggml_backend_tensor_set(t, kv->staging, at, size);
                    } else {
                        ggml_backend_tensor_get(t, kv->staging, at, size);
                        put(st, kv->staging, size);
                    }
                }
            }
        }
    }
}

static struct file_header expected_header(const struct hs_session * s, int32_t len) {
    struct file_header h = { .version = 1, .header_size = sizeof h, .fingerprint = s->model->fingerprint, .type_k = (int32_t) s->kv.shape.type_k,
        .type_v = (int32_t) s->kv.shape.type_v, .page_size = s->kv.page_size, .window = s->model->plan.window, .len = len,
        .pages_bytes = pages_bytes(&s->kv, len), .rings_bytes = len ? s->kv.checkpoint_bytes : 0 };
    memcpy(h.magic, file_magic, sizeof h.magic);
    return h;
}

// --- save --------------------------------------------------------------------------------------------------------------------------------

static int write_file(struct hs_session * s, int32_t seq, FILE * f, uint8_t * rings) {
    const int32_t len = s->kv.seq[seq].len;
    struct stream st = { .f = f, .hash = HS_HASH_INIT };
    const struct file_header h = expected_header(s, len);
    put(&st, &h, sizeof h);
    put(&st, s->kv.seq[seq].tokens, (size_t) len * sizeof(int32_t));
    move_pages(s, seq, len, &st, false);
    if (h.rings_bytes) {
        hs_kv_rings_read(&s->kv, seq, len, rings);
        put(&st, rings, (size_t) h.rings_bytes);
    }
    const uint64_t sum = st.hash;
    put(&st, &sum, sizeof sum);
    return !st.failed && fflush(f) == 0 && fsync(fileno(f)) == 0;
}

static int save(struct hs_session * s, int32_t seq, const char * path, hs_error * err) {
    const size_t n = strlen(path) + 32;
    char * tmp = malloc(n);
    uint8_t * rings = calloc(1, s->kv.checkpoint_bytes + 1);
    int rc = HS_OK;
    if (!tmp || !rings) {
        rc = hs_fail(err, HS_E_MEMORY, "session file: cannot allocate %zu bytes", s->kv.checkpoint_bytes + n);
        goto done;
    }
    snprintf(tmp, n, "%s.tmp-%ld", path, (long) getpid());
    FILE * f = fopen(tmp, "wb");
    if (!f) {
        rc = hs_fail(err, HS_E_IO, "%s: cannot be written: %s", tmp, strerror(errno));
        goto done;
    }
    const bool written = write_file(s, seq, f, rings);
    const int why = errno;
    if (fclose(f) != 0 || !written || rename(tmp, path) != 0) {
        rc = hs_fail(err, HS_E_IO, "%s: cannot be written: %s", path, strerror(written ? errno : why));
        unlink(tmp);
    }
done:
    free(tmp);
    free(rings);
    return rc;
}

int hs_seq_save(hs_session * s, int32_t seq, const char * path, hs_error * err) {
    HS_TRY(hs_check_seq(s, seq, err));
    if (!path) return hs_fail(err, HS_E_ARG, "path: is NULL");
    HS_TRY(hs_session_enter(s, err));
    const int rc = save(s, seq, path, err);
    hs_session_leave(s);
    return rc == HS_OK ? hs_ok(err) : rc;
}

// --- load --------------------------------------------------------------------------------------------------------------------------------

#define WRONG(code, what, fmt, found, expected) return hs_fail(err, code, "%s: " what " is " fmt ", expected " fmt, path, found, expected)

static int check_header(const struct hs_session * s, const struct file_header * h, uint64_t size, const char * path, hs_error * err) {
    if (memcmp(h->magic, file_magic, sizeof file_magic)) return hs_fail(err, HS_E_FORMAT, "%s: is not a session file (bad magic)", path);
    if (h->version != 1) WRONG(HS_E_FORMAT, "session file version", "%u", h->version, 1u);
    if (h->header_size != sizeof *h) WRONG(HS_E_FORMAT, "header size", "%u", h->header_size, (uint32_t) sizeof *h);
    if (h->fingerprint != s->model->fingerprint) {
        WRONG(HS_E_STATE, "the model's fingerprint", "%016llx", (unsigned long long) h->fingerprint, (unsigned long long) s->model->fingerprint);
    }
    if (h->len < 0) return hs_fail(err, HS_E_FORMAT, "%s: holds %d tokens, expected at least 0", path, h->len);
    if (h->len > s->kv.shape.n_ctx) return hs_fail(err, HS_E_FULL, "%s: holds %d tokens, more than n_ctx %d", path, h->len, s->kv.shape.n_ctx);
    const struct file_header want = expected_header(s, h->len);
    if (h->type_k != want.type_k) WRONG(HS_E_STATE, "type_k", "%d", h->type_k, want.type_k);
    if (h->type_v != want.type_v) WRONG(HS_E_STATE, "type_v", "%d", h->type_v, want.type_v);
    if (h->page_size != want.page_size) WRONG(HS_E_STATE, "page size", "%d", h->page_size, want.page_size);
    if (h->window != want.window) WRONG(HS_E_STATE, "window", "%d", h->window, want.window);
    if (h->pages_bytes != want.pages_bytes) WRONG(HS_E_STATE, "size of the pages", "%llu", (unsigned long long) h->pages_bytes, (unsigned long long) want.pages_bytes);
    if (h->rings_bytes != want.rings_bytes) WRONG(HS_E_STATE, "size of the rings", "%llu", (unsigned long long) h->rings_bytes, (unsigned long long) want.rings_bytes);
    const uint64_t whole = sizeof *h + (uint64_t) h->len * sizeof(int32_t) + want.pages_bytes + want.rings_bytes + sizeof(uint64_t);
    if (size != whole) WRONG(HS_E_FORMAT, "its size", "%llu", (unsigned long long) size, (unsigned long long) whole);
    return HS_OK;
}

static int load_body(struct hs_session * s, int32_t seq, struct stream * st, const struct file_header * h, int32_t * tokens, uint8_t * rings, const char * path,
                     hs_error * err) {
    get(st, tokens, (size_t) h->len * sizeof *tokens);
    for (int32_t i = 0; i < h->len && !st->failed; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->model->hp.n_vocab) {
            return hs_fail(err, HS_E_FORMAT, "%s: token %d is %d, expected 0 to %d", path, i, tokens[i], s->model->hp.n_vocab - 1);
        }
    }
    hs_kv_truncate(&s->kv, seq, 0);
    HS_TRY(hs_kv_reserve(&s->kv, seq, h->len, err));
    move_pages(s, seq, h->len, st, true);
    get(st, rings, (size_t) h->rings_bytes);
    uint64_t sum = 0;
    const uint64_t have = st->hash;
    get(st, &sum, sizeof sum);
    if (st->failed) return hs_fail(err, HS_E_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (sum != have) WRONG(HS_E_FORMAT, "its checksum", "%016llx", (unsigned long long) have, (unsigned long long) sum);
    if (h->len) {
        hs_kv_commit(&s->kv, seq, tokens, h->len);
        if (s->kv.ring_size) hs_kv_rings_write(&s->kv, seq, h->len, rings);
    }
    hs_session_checkpoint(s, seq);
    return HS_OK;
}

static int load(struct hs_session * s, int32_t seq, const char * path, hs_error * err) {
    struct file_header h;
    struct stat info;
    struct stream st = { .f = fopen(path, "rb"), .hash = HS_HASH_INIT };
    int32_t * tokens = NULL;
    uint8_t * rings = NULL;
    int rc = HS_OK;
    if (!st.f) {
        rc = hs_fail(err, HS_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
        hs_kv_truncate(&s->kv, seq, 0);
        return rc;
    }
    memset(&h, 0, sizeof h);
    get(&st, &h, sizeof h);
    if (fstat(fileno(st.f), &info) != 0) rc = hs_fail(err, HS_E_IO, "%s: cannot be read: %s", path, strerror(errno));
    else if (st.failed) rc = hs_fail(err, HS_E_FORMAT, "%s: has %lld bytes, too few for a session file's header", path, (long long) info.st_size);
    else rc = check_header(s, &h, (uint64_t) info.st_size, path, err);
    if (rc == HS_OK) {
        tokens = calloc((size_t) h.len + 1, sizeof *tokens);
        rings = calloc(1, (size_t) h.rings_bytes + 1);
        if (!tokens || !rings) rc = hs_fail(err, HS_E_MEMORY, "%s: cannot allocate memory for %d tokens", path, h.len);
    }
    if (rc == HS_OK) rc = load_body(s, seq, &st, &h, tokens, rings, path, err);
    if (rc != HS_OK) hs_kv_truncate(&s->kv, seq, 0);
    fclose(st.f);
    free(tokens);
    free(rings);
    return rc;
}

int hs_seq_load(hs_session * s, int32_t seq, const char * path, hs_error * err) {
    HS_TRY(hs_check_seq(s, seq, err));
    if (!path) return hs_fail(err, HS_E_ARG, "path: is NULL");
    HS_TRY(hs_session_enter(s, err));
    const int rc = load(s, seq, path, err);
    hs_session_leave(s);
    return rc == HS_OK ? hs_ok(err) : rc;
}
