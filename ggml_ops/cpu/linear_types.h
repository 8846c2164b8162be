// A tile of the linear op by its type: linear_type of the kernel file that includes this at its end, compiled once a type, the type a constant in each.
#pragma once

static void linear_q4_0(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q4_0, t); }
static void linear_q4_1(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q4_1, t); }
static void linear_q8_0(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q8_0, t); }

static void linear_tile(const struct hs_linear_tile * t) {
    if (t->type == GGML_TYPE_Q8_0) {
        linear_q8_0(t);
    } else if (t->type == GGML_TYPE_Q4_1) {
        linear_q4_1(t);
    } else {
        linear_q4_0(t);
    }
}
