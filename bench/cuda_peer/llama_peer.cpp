// llama.cpp as a server of measurements: a command a line on standard input, a JSON object a line on standard output. bench/cuda_models.py drives it.
//   open N_CTX N_SEQ N_UBATCH CACHE_TYPE N_GPU_LAYERS PATH   load, and make a context: flash attention on, one cache a sequence (kv_unified off)
//   eval SEQ N           append N tokens in batches; "seconds" until their last logits are there
//   decode N_SEQ STEPS   STEPS times a token more for each of the sequences 0 .. N_SEQ-1 in one batch; the device is waited for every time
//   rewind SEQ N         keep the first N tokens
//   copy SRC DST         DST becomes SRC, in its own memory
//   memory               "context", "model", "compute": bytes allocated
//   logits               "finite", and the first eight of the last token
// Tokens: position p is (7919 p + 13) mod n_vocab. A command that fails answers {"error": ...}.
#include "llama-ext.h"
#include "llama.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct engine {
    llama_model * model = nullptr;
    llama_context * context = nullptr;
    llama_batch batch {};
    std::vector<int> length;
    int n_batch = 0, n_vocab = 0;

    ~engine() {
        if (context) {
            llama_batch_free(batch);
            llama_free(context);
        }
        llama_model_free(model);
    }

    void open(std::istringstream & in) {
        int n_ctx, n_seq, n_ubatch, n_gpu_layers;
        std::string type, path;
        if (!(in >> n_ctx >> n_seq >> n_ubatch >> type >> n_gpu_layers >> std::ws) || !std::getline(in, path)) {
            throw std::runtime_error("open: expected N_CTX N_SEQ N_UBATCH CACHE_TYPE N_GPU_LAYERS PATH");
        }
        llama_model_params mp = llama_model_default_params();
        mp.n_gpu_layers = n_gpu_layers;
        model = llama_model_load_from_file(path.c_str(), mp);
        if (!model) {
            throw std::runtime_error("cannot load " + path);
        }
        llama_context_params cp = llama_context_default_params();
        cp.n_ctx = (uint32_t) (n_ctx * n_seq);
        cp.n_seq_max = (uint32_t) n_seq;
        n_batch = n_ubatch > 2048 ? n_ubatch : 2048;
        cp.n_batch = (uint32_t) n_batch;
        cp.n_ubatch = (uint32_t) n_ubatch;
        cp.type_k = cp.type_v = type == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
        cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        cp.kv_unified = false;
        cp.no_perf = true;
        context = llama_init_from_model(model, cp);
        if (!context) {
            throw std::runtime_error("cannot make the context");
        }
        batch = llama_batch_init(n_batch, 0, 1);
        length.assign((size_t) n_seq, 0);
        n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    }

    void add(int seq, bool wanted) {
        const int i = batch.n_tokens++, pos = length.at((size_t) seq)++;
        batch.token[i] = (llama_token) ((7919LL * pos + 13) % n_vocab);
        batch.pos[i] = pos;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i] = wanted;
    }

    void run() {
        const int code = llama_decode(context, batch);
        if (code != 0) {
            throw std::runtime_error("llama_decode ended with " + std::to_string(code));
        }
    }

    void eval(int seq, int n) {
        for (int at = 0; at < n; at += n_batch) {
            const int end = at + n_batch < n ? at + n_batch : n;
            batch.n_tokens = 0;
            for (int i = at; i < end; i++) {
                add(seq, i == n - 1);
            }
            run();
        }
        llama_synchronize(context);
    }

    void decode(int n_seq, int steps) {
        for (int i = 0; i < steps; i++) {
            batch.n_tokens = 0;
            for (int s = 0; s < n_seq; s++) {
                add(s, true);
            }
            run();
            llama_synchronize(context);
        }
    }
};

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string answer(engine & e, const std::string & line) {
    std::istringstream in(line);
    std::string command;
    int a = 0, b = 0;
    char text[512] = "{}";
    in >> command;
    if (command == "open") {
        e.open(in);
    } else if (!e.context) {
        throw std::runtime_error("open a model first");
    } else if (command == "memory") {
        size_t model = 0, context = 0, compute = 0;
        for (const auto & item : llama_get_memory_breakdown(e.context)) {
            model += item.second.model;
            context += item.second.context;
            compute += item.second.compute;
        }
        snprintf(text, sizeof(text), "{\"model\": %zu, \"context\": %zu, \"compute\": %zu}", model, context, compute);
    } else if (command == "logits") {
        const float * x = llama_get_logits_ith(e.context, -1);
        bool finite = true;
        for (int i = 0; i < e.n_vocab; i++) {
            finite = finite && std::isfinite(x[i]);
        }
        snprintf(text, sizeof(text), "{\"finite\": %s, \"first\": [%g, %g, %g, %g, %g, %g, %g, %g]}", finite ? "true" : "false", x[0], x[1],
            x[2], x[3], x[4], x[5], x[6], x[7]);
    } else if (!(in >> a >> b)) {
        throw std::runtime_error("'" + line + "': expected a command and two numbers");
    } else if (command == "eval" || command == "decode") {
        const double start = seconds();
        command == "eval" ? e.eval(a, b) : e.decode(a, b);
        snprintf(text, sizeof(text), "{\"seconds\": %.9f}", seconds() - start);
    } else if (command == "rewind") {
        llama_memory_seq_rm(llama_get_memory(e.context), a, b, -1);
        e.length.at((size_t) a) = b;
    } else if (command == "copy") {
        llama_memory_seq_rm(llama_get_memory(e.context), b, -1, -1);
        llama_memory_seq_cp(llama_get_memory(e.context), a, b, -1, -1);
        e.length.at((size_t) b) = e.length.at((size_t) a);
    } else {
        throw std::runtime_error("unknown command '" + command + "'");
    }
    return text;
}

void only_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

std::string escaped(const std::string & text) {
    std::string out;
    for (const char c : text) {
        out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c < ' ' ? ' ' : c);
    }
    return out;
}

} // namespace

int main() {
    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    engine e;
    for (std::string line; std::getline(std::cin, line);) {
        std::string out;
        try {
            out = answer(e, line);
        } catch (const std::exception & error) {
            out = "{\"error\": \"" + escaped(error.what()) + "\"}";
        }
        std::cout << out << std::endl;
    }
    return 0;
}
