# ferry_unoptimised(TARGET [PRECOMPILED]): for what takes longer to compile than to run. PRECOMPILED: with the headers of ferry_test_headers.
function(ferry_unoptimised target)
    target_compile_options(${target} PRIVATE -O0)
    if("${ARGN}" STREQUAL "PRECOMPILED" AND FERRY_PCH)
        target_precompile_headers(${target} REUSE_FROM ferry_test_headers)
    endif()
endfunction()

# ferry_precompile_test_headers(): makes ferry_test_headers, what most test programs include.
function(ferry_precompile_test_headers)
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/ferry_test_headers.cpp CONTENT "// precompiled headers\n")
    add_library(ferry_test_headers STATIC ${CMAKE_BINARY_DIR}/ferry_test_headers.cpp)
    target_link_libraries(ferry_test_headers PRIVATE ferry_options GTest::gmock nlohmann_json::nlohmann_json)
    target_precompile_headers(ferry_test_headers PRIVATE <algorithm> <map> <string> <vector> <gmock/gmock.h>
                                                         <gtest/gtest.h> <nlohmann/json.hpp>)
    ferry_unoptimised(ferry_test_headers)
    set_target_properties(ferry_test_headers PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(ferry_test_headers PRIVATE -fPIE)  # as executables are
endfunction()

# ferry_library(NAME sources... [LIBS ...]): one static library per folder.
function(ferry_library name)
    cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
    add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
    target_link_libraries(${name} PUBLIC ferry_options ${ARG_LIBS})
endfunction()

# Sanitized programs take several times as long: seconds of a test's TIMEOUT, in place.
function(ferry_test_time variable)
    if(FERRY_SANITIZE)
        math(EXPR ${variable} "4 * ${${variable}}")
    endif()
    set(${variable} ${${variable}} PARENT_SCOPE)
endfunction()

# ferry_test(NAME sources... [OPTIMISED] [LIBS ...] [LABELS ...] [TIMEOUT s]): a GoogleTest program, label `unit` unless said.
# OPTIMISED: it computes much itself, beside what it tests.
function(ferry_test name)
    cmake_parse_arguments(ARG "OPTIMISED" "TIMEOUT" "LIBS;LABELS" ${ARGN})
    if(NOT ARG_LABELS)
        set(ARG_LABELS unit)
    endif()
    if(NOT ARG_TIMEOUT)
        set(ARG_TIMEOUT 300)
    endif()
    ferry_test_time(ARG_TIMEOUT)
    add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
    target_link_libraries(${name} PRIVATE ${ARG_LIBS} GTest::gmock GTest::gtest_main)
    if(NOT ARG_OPTIMISED)
        ferry_unoptimised(${name} PRECOMPILED)
    endif()
    target_compile_definitions(${name} PRIVATE FERRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# ferry_mpi_test(NAME sources... RANKS 1 2 3 [OPTIMISED] [LIBS ...] [LABELS ...]): one program, run once per number of ranks.
# Its main must initialise MPI (tests/support/mpi_main.cpp). Without MPI only RANKS 1 is run, when it is in the list.
function(ferry_mpi_test name)
    cmake_parse_arguments(ARG "OPTIMISED" "TIMEOUT" "LIBS;LABELS;RANKS" ${ARGN})
    if(NOT ARG_LABELS)
        set(ARG_LABELS mpi)
    endif()
    if(NOT ARG_TIMEOUT)
        set(ARG_TIMEOUT 120)
    endif()
    ferry_test_time(ARG_TIMEOUT)
    add_executable(${name} ${ARG_UNPARSED_ARGUMENTS} ${CMAKE_SOURCE_DIR}/tests/support/mpi_main.cpp)
    target_link_libraries(${name} PRIVATE ${ARG_LIBS} ferry_comm GTest::gmock)
    if(NOT ARG_OPTIMISED)
        ferry_unoptimised(${name} PRECOMPILED)
    endif()
    target_compile_definitions(${name} PRIVATE FERRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    foreach(ranks ${ARG_RANKS})
        if(FERRY_HAS_MPI)
            add_test(NAME ${name}.n${ranks}
                     COMMAND ${CMAKE_SOURCE_DIR}/tests/support/mpirun.sh ${ranks} $<TARGET_FILE:${name}>)
        elseif(ranks EQUAL 1)
            add_test(NAME ${name}.n1 COMMAND ${name})
        else()
            continue()
        endif()
        set_tests_properties(${name}.n${ranks} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
                                                          PROCESSORS 2)
    endforeach()
endfunction()

# ferry_cuda_test(NAME sources... [LIBS ...] [TIMEOUT s]): a GoogleTest program over CUDA kernels, written once. NAME
# runs them on the CPU (tests/support/cuda_emulation), NAME.late once more with threads and streams in random order; on a
# GPU gpu_tests runs those of all NAMEs (tests/CMakeLists.txt).
# ThreadSanitizer does not follow the threads that the emulation makes: left out there.
function(ferry_cuda_test name)
    if(FERRY_SANITIZE MATCHES "thread")
        return()
    endif()
    cmake_parse_arguments(ARG "" "TIMEOUT" "LIBS" ${ARGN})
    if(NOT ARG_TIMEOUT)
        set(ARG_TIMEOUT 300)
    endif()
    ferry_test_time(ARG_TIMEOUT)
    add_library(${name}_objects OBJECT ${ARG_UNPARSED_ARGUMENTS})
    target_link_libraries(${name}_objects PUBLIC ferry_layers ${ARG_LIBS} GTest::gmock)
    target_compile_definitions(${name}_objects PRIVATE FERRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    add_executable(${name})
    target_link_libraries(${name} PRIVATE ferry_cuda_emulated ferry_cuda_main ${name}_objects)
    add_test(NAME ${name} COMMAND ${name})
    add_test(NAME ${name}.late COMMAND ${name})
    set_tests_properties(${name} ${name}.late PROPERTIES LABELS unit TIMEOUT ${ARG_TIMEOUT})
    set_tests_properties(${name}.late PROPERTIES ENVIRONMENT "CUDA_EMULATION_SEED=1;CUDA_EMULATION_LATE=1")
    if(FERRY_HAS_CUDA)
        target_link_libraries(gpu_tests PRIVATE ${name}_objects)
    endif()
endfunction()
