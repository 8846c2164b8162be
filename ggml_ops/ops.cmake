# The ops: an object library that goes into libhysparse, and op_runner.
set(HS_OPS_DIR "${CMAKE_CURRENT_LIST_DIR}")

add_library(hs_ops OBJECT
    ${HS_OPS_DIR}/op_table.c ${HS_OPS_DIR}/build.c
    ${HS_OPS_DIR}/attn_full.c ${HS_OPS_DIR}/select_blocks.c ${HS_OPS_DIR}/attn_sparse.c ${HS_OPS_DIR}/attn_window.c ${HS_OPS_DIR}/linear.c
    ${HS_OPS_DIR}/ref/attn_full.c ${HS_OPS_DIR}/ref/select_blocks.c ${HS_OPS_DIR}/ref/attn_sparse.c ${HS_OPS_DIR}/ref/attn_window.c ${HS_OPS_DIR}/ref/linear.c
    ${HS_OPS_DIR}/cpu/attn_full.c ${HS_OPS_DIR}/cpu/select_blocks.c ${HS_OPS_DIR}/cpu/attn_sparse.c ${HS_OPS_DIR}/cpu/attn_window.c ${HS_OPS_DIR}/cpu/linear.c
    ${HS_OPS_DIR}/cpu/dispatch.c ${HS_OPS_DIR}/cpu/level_scalar.c)
target_include_directories(hs_ops PUBLIC ${HS_OPS_DIR})
target_link_libraries(hs_ops PUBLIC ggml-base ggml-cpu m PRIVATE hysparse_flags)

# The attention engine once per instruction set, chosen at run time: these files, and only they, may use more than the baseline.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64|i[3-6]86)$")
    target_sources(hs_ops PRIVATE ${HS_OPS_DIR}/cpu/level_avx2.c ${HS_OPS_DIR}/cpu/level_avx512.c
        ${HS_OPS_DIR}/cpu/level_avx512vnni.c)
    set_source_files_properties(${HS_OPS_DIR}/cpu/level_avx2.c PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    set_source_files_properties(${HS_OPS_DIR}/cpu/level_avx512.c PROPERTIES
        COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx2;-mfma;-mf16c")
    set_source_files_properties(${HS_OPS_DIR}/cpu/level_avx512vnni.c PROPERTIES
        COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx2;-mfma;-mf16c")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    target_sources(hs_ops PRIVATE ${HS_OPS_DIR}/cpu/level_neon.c ${HS_OPS_DIR}/cpu/level_neon_dotprod.c)
    set_source_files_properties(${HS_OPS_DIR}/cpu/level_neon_dotprod.c PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
endif()

# CUDA: the decorator and the kernels. They see ggml-cuda's private headers, so they are compiled with its definitions.
if(HYSPARSE_CUDA)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    file(GLOB HS_CUDA_SOURCES CONFIGURE_DEPENDS "${HS_OPS_DIR}/cuda/*.cu")
    add_library(hs_cuda OBJECT ${HS_CUDA_SOURCES})
    get_directory_property(HS_GGML_CUDA_DEFINITIONS DIRECTORY "${GGML_SOURCE}/src/ggml-cuda" COMPILE_DEFINITIONS)
    target_compile_definitions(hs_cuda PRIVATE ${HS_GGML_CUDA_DEFINITIONS} PUBLIC HS_CUDA)
    target_include_directories(hs_cuda PUBLIC ${HS_OPS_DIR}/cuda PRIVATE "${GGML_SOURCE}/src" "${GGML_SOURCE}/src/ggml-cuda")
    target_link_libraries(hs_cuda PUBLIC ggml-cuda PRIVATE ggml-base CUDA::cudart)
endif()

if(HYSPARSE_BUILD_TESTS)
    add_executable(op_runner
        ${HS_OPS_DIR}/op_runner.c ${HS_OPS_DIR}/op_cases.c ${HS_OPS_DIR}/op_cases_tiles.c ${HS_OPS_DIR}/op_data.c ${HS_OPS_DIR}/op_graph.c ${HS_OPS_DIR}/op_compare.c
        ${HS_OPS_DIR}/op_perf.c ${HS_OPS_DIR}/op_perf_node.c ${HS_OPS_DIR}/op_floor.c)
    target_link_libraries(op_runner PRIVATE hs_ops ggml Threads::Threads hysparse_flags)
    if(HYSPARSE_CUDA)
        target_link_libraries(op_runner PRIVATE hs_cuda)
    endif()
    add_executable(hs_builders_test ${HS_OPS_DIR}/../tests/ops/builders_test.c)
    target_link_libraries(hs_builders_test PRIVATE hs_ops ggml hysparse_flags)
    add_test(NAME hs_builders COMMAND hs_builders_test)
    add_test(NAME op_runner COMMAND op_runner test)
    add_test(NAME op_runner_support COMMAND ${CMAKE_COMMAND} -DRUNNER=$<TARGET_FILE:op_runner> -DPAGE=${HS_OPS_DIR}/../docs/ops.md
        -P ${HS_OPS_DIR}/../tests/ops/check_support_table.cmake)
    add_test(NAME op_runner_plant COMMAND op_runner test --plant)
    add_test(NAME op_runner_perf COMMAND op_runner perf --rounds 1 "full q8_0 4/2x64 3@200 | full-noscores q8_0 4/2x64 3@200 | flash q8_0 4/2x64 3@200"
        "sparse f16 4/2x64 3@2000 | sparse-random f16 4/2x64 3@2000 | sparse f16 4/2x64 3@100" "select f32 4/2x64 1@2000" "window f32 4/2x64 3@700")
endif()
