# The ops: an object library that goes into libhysparse, and op_runner.
set(HS_OPS_DIR "${CMAKE_CURRENT_LIST_DIR}")

add_library(hs_ops OBJECT
    ${HS_OPS_DIR}/op_table.c ${HS_OPS_DIR}/build.c
    ${HS_OPS_DIR}/attn_full.c ${HS_OPS_DIR}/select_blocks.c ${HS_OPS_DIR}/attn_sparse.c ${HS_OPS_DIR}/attn_window.c
    ${HS_OPS_DIR}/ref/attn_full.c ${HS_OPS_DIR}/ref/select_blocks.c ${HS_OPS_DIR}/ref/attn_sparse.c ${HS_OPS_DIR}/ref/attn_window.c
    ${HS_OPS_DIR}/cpu/dispatch.c)
target_include_directories(hs_ops PUBLIC ${HS_OPS_DIR})
target_link_libraries(hs_ops PUBLIC ggml-base ggml-cpu m PRIVATE hysparse_flags)
