# Compiler settings shared by every target: warnings are errors, results do not depend on -ffast-math.
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

# nvcc may not fuse either; fmt 9 would take its front end for an old one.
set(FERRY_CUDA_OPTIONS -DFMT_USE_CONSTEXPR=1 --fmad=false --expt-relaxed-constexpr)

add_library(ferry_options INTERFACE)
target_compile_options(
    ferry_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Werror
                            # the compiler may not fuse a*b+c on its own: kernels say where (DESIGN 4.1)
                            -ffp-contract=off>
                        "$<$<COMPILE_LANGUAGE:CUDA>:${FERRY_CUDA_OPTIONS};--Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror,-ffp-contract=off>")
target_include_directories(ferry_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})

# The headers of GoogleTest and JSON are most of what a test program is to a compiler. Compiler caches (a launcher) do not get
# on with precompiled headers.
if(CMAKE_CXX_COMPILER_LAUNCHER)
    set(precompile OFF)
else()
    set(precompile ON)
endif()
option(FERRY_PCH "Precompile the headers that tests share" ${precompile})

if(FERRY_SANITIZE)
    add_compile_options(-fsanitize=${FERRY_SANITIZE} -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${FERRY_SANITIZE})
    # As layers/cpu/vector_targets.h, and not for AVX-512: minutes of compiling.
    add_compile_definitions(
        "HWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_SSE4|HWY_AVX3|HWY_AVX3_DL|HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
endif()
if(FERRY_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()
