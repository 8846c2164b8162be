# C tests (ctest) and the fuzz target. Python tests run under pytest, on the installed package.
set(HS_TESTS_DIR "${CMAKE_CURRENT_LIST_DIR}")

# The same objects as libhysparse, linked statically, so that a test can also call what the library does not export.
add_library(hs_test_lib INTERFACE)
target_sources(hs_test_lib INTERFACE ${HS_ALL_OBJECTS})
target_include_directories(hs_test_lib INTERFACE "${HS_RUNTIME_DIR}/include" "${HS_RUNTIME_DIR}" "${HS_OPS_DIR}")
target_link_libraries(hs_test_lib INTERFACE hysparse_flags ggml Threads::Threads m)

# ggml adds offsets to null pointers when it measures graphs: harmless, and not ours. Its memory errors still count.
if(HYSPARSE_SANITIZE MATCHES "undefined")
    foreach(target ggml ggml-base ggml-cpu)
        target_compile_options(${target} PRIVATE -fno-sanitize=undefined)
    endforeach()
endif()

if(HYSPARSE_BUILD_TESTS)
    add_executable(test_gguf "${HS_TESTS_DIR}/runtime/test_gguf.c")
    target_link_libraries(test_gguf PRIVATE hs_test_lib)
    add_test(NAME gguf COMMAND test_gguf)

    add_executable(test_sampler "${HS_TESTS_DIR}/runtime/test_sampler.c")
    target_link_libraries(test_sampler PRIVATE hs_test_lib)
    add_test(NAME sampler COMMAND test_sampler)

    add_executable(test_quantize "${HS_TESTS_DIR}/runtime/test_quantize.c")
    target_link_libraries(test_quantize PRIVATE hs_test_lib)
    add_test(NAME quantize COMMAND test_quantize)

    if(NOT HYSPARSE_SANITIZE AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
        add_executable(test_decode_alloc "${HS_TESTS_DIR}/runtime/test_decode_alloc.c")
        target_link_libraries(test_decode_alloc PRIVATE hs_test_lib)
        add_test(NAME decode_alloc COMMAND test_decode_alloc "${HS_TESTS_DIR}/runtime/corpus")
    endif()

    # The fuzz target's seeds, their prefixes and mutations; with HYSPARSE_SANITIZE=address,undefined under the sanitizers.
    add_executable(corpus_replay "${HS_TESTS_DIR}/runtime/fuzz_gguf.c")
    target_link_libraries(corpus_replay PRIVATE hs_test_lib)
    add_test(NAME corpus_replay COMMAND corpus_replay "${HS_TESTS_DIR}/runtime/corpus")
endif()

# cmake ... -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DHYSPARSE_BUILD_FUZZ=ON -DHYSPARSE_SANITIZE=address,undefined
# build/fuzz_gguf -dict=tests/runtime/gguf.dict -max_len=65536 NEW_FOLDER tests/runtime/corpus
if(HYSPARSE_BUILD_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "HYSPARSE_BUILD_FUZZ needs clang (-DCMAKE_C_COMPILER=clang), found ${CMAKE_C_COMPILER_ID}")
    endif()
    # The runtime is compiled once more, for coverage; the ops and ggml are not what the fuzzer explores.
    set(HS_FUZZ_FLAGS -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g)
    add_executable(fuzz_gguf "${HS_TESTS_DIR}/runtime/fuzz_gguf.c" ${HS_RUNTIME_SOURCES} $<TARGET_OBJECTS:hs_ops>)
    target_compile_definitions(fuzz_gguf PRIVATE HS_LIBFUZZER HS_VERSION="fuzz")
    target_compile_options(fuzz_gguf PRIVATE ${HS_FUZZ_FLAGS})
    target_link_options(fuzz_gguf PRIVATE ${HS_FUZZ_FLAGS})
    target_include_directories(fuzz_gguf PRIVATE "${HS_RUNTIME_DIR}/include" "${HS_RUNTIME_DIR}" "${HS_OPS_DIR}")
    target_link_libraries(fuzz_gguf PRIVATE hysparse_flags ggml Threads::Threads m)
endif()
