// What the kernels of a split of decode have in common (mla_decode.cu).
#pragma once
#include "base/cuda_api.h"
#include "layers/cuda/mla_launch.h"

namespace ferry {

__device__ __forceinline__ void store_sums(const DecodeParams& p, int64_t slot, int head,
                                           float maximum, float sum) {
    p.partial_sums[(slot * p.heads + head) * 2] = maximum;
    p.partial_sums[(slot * p.heads + head) * 2 + 1] = sum;
}

// The result of a row without keys, of heads [begin, end): it fills a batch up.
__device__ __forceinline__ void store_zeros(const DecodeParams& p, const DecodeRow& row, int begin,
                                            int end) {
    float* const to = p.out + row.batch_row * p.out_stride;
    for (int i = begin * p.kv_lora + static_cast<int>(threadIdx.x); i < end * p.kv_lora;
         i += static_cast<int>(blockDim.x))
        to[i] = 0;
}

}  // namespace ferry
