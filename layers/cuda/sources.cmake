# The CUDA backend, compiled by nvcc (layers/CMakeLists.txt) and, for tests on the CPU, by the C++
# compiler (tests/support/cuda_emulation/CMakeLists.txt). Paths from the project's root.
set(FERRY_CUDA_SOURCES
    layers/cuda/cublas_lt.cpp
    layers/cuda/cuda_kernels.cpp
    layers/cuda/elementwise.cu
    layers/cuda/few_rows.cpp
    layers/cuda/few_rows.cu
    layers/cuda/gate.cu
    layers/cuda/gemm_plan.cpp
    layers/cuda/grouped_gemm.cpp
    layers/cuda/grouped_gemm.cu
    layers/cuda/grouped_gemm_wgmma.cu
    layers/cuda/int4_tiles.cpp
    layers/cuda/latent_cache.cu
    layers/cuda/linear.cpp
    layers/cuda/logits.cu
    layers/cuda/mla_decode.cpp
    layers/cuda/mla_decode.cu
    layers/cuda/mla_decode_wgmma.cu
    layers/cuda/mla_plan.cpp
    layers/cuda/mla_prefill.cpp
    layers/cuda/mla_prefill.cu
    layers/cuda/mla_prefill_hopper.cu
    layers/cuda/quantise.cu
    layers/cuda/rms_norm.cu
    layers/cuda/rope.cu
    layers/cuda/sampling.cpp
    layers/cuda/sampling.cu
    layers/cuda/select_keys.cu
    layers/cuda/staged_upload.cpp
    layers/cuda/step_arrays.cpp
    layers/cuda/step_graphs.cpp
    layers/cuda/tensor_parallel.cpp
    layers/cuda/tensor_parallel.cu)

# Kernels in which spilled registers would cost most: where tests are built too, one that spills does not compile.
# (tests/layers/cuda/ptxas_report.sh prints what each takes.)
set(FERRY_CUDA_REFUSE_SPILLS -Xptxas=--warn-on-spills)  # a warning, and warnings are errors
set(FERRY_CUDA_UNSPILLED
    layers/cuda/few_rows.cu
    layers/cuda/gate.cu
    layers/cuda/grouped_gemm.cu
    layers/cuda/grouped_gemm_wgmma.cu
    layers/cuda/latent_cache.cu
    layers/cuda/mla_decode.cu
    layers/cuda/mla_decode_wgmma.cu
    layers/cuda/mla_prefill.cu
    layers/cuda/mla_prefill_hopper.cu
    layers/cuda/quantise.cu
    layers/cuda/rms_norm.cu
    layers/cuda/select_keys.cu)
