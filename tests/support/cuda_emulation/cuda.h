// Stands in for the driver's header: tensor maps, as far as Ferry makes them.
#pragma once
#include <cstdint>

#include "cuda_runtime.h"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

// Of 16-bit values in two dimensions, swizzled in 128 bytes.
struct CUtensorMap {
    const std::byte* begin = nullptr;
    uint64_t columns = 0, rows = 0, row_bytes = 0;
    uint32_t box_columns = 0, box_rows = 0;
};

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                       void* begin, const cuuint64_t* sizes,
                                       const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave,
                                       CUtensorMapSwizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill) {
    if (rank != 2 || reinterpret_cast<uintptr_t>(begin) % 16 != 0 || strides[0] % 16 != 0 ||
        box[0] * 2 > 128 || box[1] > 256 || steps[0] != 1 || steps[1] != 1)
        return CUDA_ERROR_INVALID_VALUE;
    *map = {.begin = static_cast<const std::byte*>(begin),
            .columns = sizes[0],
            .rows = sizes[1],
            .row_bytes = strides[0],
            .box_columns = box[0],
            .box_rows = box[1]};
    return CUDA_SUCCESS;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0 };
constexpr unsigned long long cudaEnableDefault = 0;
// Of the one function that Ferry asks for.
inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
    *function = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
