// What the tiles of a product are cut from (gemm_tile-inl.h).
#pragma once
#include "layers/cpu/panel.h"
#include "layers/kernels.h"

namespace ferry {

struct Tile {
    const std::byte* panels;
    int64_t panel_stride;  // bytes
    const float* x;        // pairs of bf16 for dots; or one of the next two
    const uint16_t* rounded;
    const WireRow* wire;
    DType wire_dtype;
    int64_t x_stride;
    int64_t num_k;
    float* y;
    int64_t y_stride;
    int64_t num_columns;  // of y; the last panel may have more
    bool resume;          // y holds the sum of the k before
    // Compressed panels only: `panels` are whole ones, entered at that k; `wide`: room for what
    // they are, [panels][wide_values] in panel.h's order.
    int64_t in;
    int64_t first_k;
    uint16_t* wide;
    int64_t wide_values;
    // Dots only: what a tile prefetches on the way, of as many panels as it has.
    const std::byte* next;
    int64_t next_stride, next_bytes;
    // fp8 only. w_scales: of the matrix, at the tile's first block of k.
    int64_t first_panel;
    const float* w_scales;
    int64_t w_scales_stride;
    const float* x_scales;  // at the tile's first row and block, or null
    int64_t x_scales_stride;
    // int4 only: of the first panel, at the tile's first group of k.
    const uint16_t* int4_scales;
    int64_t int4_scales_stride;  // from panel to panel

    float w_scale(int64_t panel, int64_t block) const {
        constexpr int64_t kPanelsPerBlock = kScaleBlock / kPanelColumns;
        return w_scales[(first_panel + panel) / kPanelsPerBlock * w_scales_stride + block];
    }
    float x_scale(int64_t row, int64_t block) const {
        return x_scales != nullptr ? x_scales[row * x_scales_stride + block] : 1.0f;
    }
    Tile from_panel(int64_t panel) const {
        Tile tile = *this;
        tile.panels += panel * panel_stride;
        tile.first_panel += panel;
        tile.int4_scales += panel * int4_scales_stride;
        tile.y += panel * kPanelColumns;
        tile.num_columns -= panel * kPanelColumns;
        return tile;
    }
};

// int4 weights by rows that are rounded to int8, and to bf16 before if asked (gemm_int8.cpp).
// scratch: kGemmScratchBytes.
void gemm_int4_by_int8(const Tile& tile, bool rounds_rows, int64_t num_rows, int64_t num_panels,
                       std::byte* scratch);

}  // namespace ferry
