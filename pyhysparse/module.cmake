# The cffi module pyhysparse._hysparse and the copy of libhysparse that lies beside it in the package.
find_package(Python COMPONENTS Interpreter Development.Module REQUIRED)

set(HS_CFFI_C "${CMAKE_CURRENT_BINARY_DIR}/_hysparse.c")
add_custom_command(
    OUTPUT "${HS_CFFI_C}"
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/_build.py" "${PROJECT_SOURCE_DIR}/runtime/include/hysparse.h" "${HS_CFFI_C}"
    DEPENDS "${CMAKE_CURRENT_LIST_DIR}/_build.py" "${PROJECT_SOURCE_DIR}/runtime/include/hysparse.h"
    COMMENT "cffi: hysparse.h -> _hysparse.c" VERBATIM)

add_library(hysparse_python MODULE "${HS_CFFI_C}")
target_include_directories(hysparse_python PRIVATE "${PROJECT_SOURCE_DIR}/runtime/include" ${Python_INCLUDE_DIRS})
target_link_libraries(hysparse_python PRIVATE hysparse)
# One binary for every CPython from 3.10 on. cffi's generated code is not ours to keep free of warnings.
target_compile_definitions(hysparse_python PRIVATE Py_LIMITED_API=0x030a0000)
target_compile_options(hysparse_python PRIVATE -w)
set_target_properties(hysparse_python PROPERTIES PREFIX "" OUTPUT_NAME "_hysparse" SUFFIX ".abi3.so" INTERPROCEDURAL_OPTIMIZATION OFF)

if(APPLE)
    target_link_options(hysparse_python PRIVATE "LINKER:-undefined,dynamic_lookup")
    set(HS_RPATH "@loader_path")
else()
    set(HS_RPATH "$ORIGIN")
endif()
# Both files also lie side by side in the build folder, so that the rpath holds there too.
set_target_properties(hysparse_python PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${HS_RPATH}"
                      LIBRARY_OUTPUT_DIRECTORY "$<TARGET_FILE_DIR:hysparse>")
if(HYSPARSE_CUDA) # the toolkit that it was built with, where the loader would not look by itself
    list(APPEND HS_RPATH "${CUDAToolkit_LIBRARY_DIR}")
endif()
set_target_properties(hysparse PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${HS_RPATH}")

install(TARGETS hysparse         LIBRARY DESTINATION pyhysparse COMPONENT python NAMELINK_SKIP RUNTIME DESTINATION pyhysparse COMPONENT python)
install(TARGETS hysparse_python  LIBRARY DESTINATION pyhysparse COMPONENT python)
