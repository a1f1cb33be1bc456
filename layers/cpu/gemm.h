// Products of rows with packed panels: what one task of a linear layer computes.
#pragma once
#include "layers/kernels.h"

namespace ferry {

// The least that divides the work of one call among threads: `num_rows` rows that share one matrix.
struct GemmRows {
    // [num_rows, in], one of: f32; rounded to bf16 before; as they travelled, of wire_dtype.
    const float* x = nullptr;
    const uint16_t* rounded = nullptr;
    const WireRow* wire = nullptr;
    float* y = nullptr;               // [num_rows, out]
    const float* x_scales = nullptr;  // [num_rows, ceil(in / 128)] or null
    int64_t group = 0;
    int64_t num_rows = 0;  // at most kGemmMaxRows
};

struct GemmStrides {  // elements from row to row
    int64_t x = 0, y = 0, x_scales = 0;
    DType wire_dtype = DType::f32;
    bool rounds_rows = false;  // to bf16, as Kernels::row_dtype says
    bool amx_sums = false;     // of rounded rows, in the order of amx.h
    bool compressed = false;   // panels are in the order of compressed_panel.h
    bool int8_rows = false;  // of int4 weights: rounded to int8 (gemm_int8.cpp), after bf16 if both
};

constexpr int64_t kGemmMaxRows = 192;  // of one task: their k-block stays in the second-level cache
constexpr size_t kGemmScratchBytes = size_t{1100} << 10;

// Columns [first_panel * 16, (first_panel + num_panels) * 16) of y = x W^T, cut off at `out`.
// scratch: kGemmScratchBytes of the calling thread.
void gemm_panels(const Weight& weight, const GemmRows& rows, const GemmStrides& strides,
                 int64_t first_panel, int64_t num_panels, std::byte* scratch);

}  // namespace ferry
