# libhysparse: the C runtime behind hysparse.h, with the ops and ggml linked in. Tests link the same objects statically (hs_runtime).
set(HS_RUNTIME_DIR "${CMAKE_CURRENT_LIST_DIR}")
file(GLOB HS_RUNTIME_SOURCES CONFIGURE_DEPENDS "${HS_RUNTIME_DIR}/*.c")

add_library(hs_runtime OBJECT ${HS_RUNTIME_SOURCES})
target_include_directories(hs_runtime PUBLIC "${HS_RUNTIME_DIR}/include" "${HS_RUNTIME_DIR}")
target_compile_definitions(hs_runtime PRIVATE HS_VERSION="${PROJECT_VERSION}")
target_link_libraries(hs_runtime PUBLIC hs_ops ggml Threads::Threads PRIVATE hysparse_flags)

set(HS_ALL_OBJECTS $<TARGET_OBJECTS:hs_runtime> $<TARGET_OBJECTS:hs_ops>)
if(HYSPARSE_CUDA)
    target_link_libraries(hs_runtime PUBLIC hs_cuda)
    list(APPEND HS_ALL_OBJECTS $<TARGET_OBJECTS:hs_cuda>)
endif()

# Only the functions of hysparse.h leave the library: ggml's symbols must not meet those of another ggml in the same process.
add_library(hysparse SHARED ${HS_ALL_OBJECTS})
target_include_directories(hysparse PUBLIC "${HS_RUNTIME_DIR}/include")
target_link_libraries(hysparse PRIVATE ggml Threads::Threads m)
if(APPLE)
    target_link_options(hysparse PRIVATE "LINKER:-exported_symbols_list,${HS_RUNTIME_DIR}/exports.macos")
elseif(UNIX)
    target_link_options(hysparse PRIVATE "LINKER:--version-script=${HS_RUNTIME_DIR}/exports.map" "LINKER:--exclude-libs,ALL" "LINKER:-Bsymbolic")
    set_target_properties(hysparse PROPERTIES LINK_DEPENDS "${HS_RUNTIME_DIR}/exports.map")
endif()
