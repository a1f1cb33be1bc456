// Linear layers: what each call computes, cut into tasks for the threads. The products themselves
// are in gemm.cpp, the order of packed weights in panel.h and linear_pack.cpp.
#include <algorithm>

#include "layers/cpu/cpu_kernels.h"
#include "layers/cpu/gemm.h"
#include "layers/cpu/panel.h"

namespace ferry {
namespace {

// Rough speeds of one core, to tell work that is worth waking other threads for.
constexpr double kBytesPerUs = 20e3;
constexpr double kFlopsPerUs = 80e3;
constexpr double kSerialUs = 10;
constexpr int64_t kTasksPerThread = 4;  // so that a thread which is held up does not hold up all

double cost_us(const WeightSpec& spec, int64_t num_rows) {
    const double values = static_cast<double>(spec.out) * static_cast<double>(spec.in);
    return std::max(values * static_cast<double>(size_bytes(spec.dtype)) / kBytesPerUs,
                    2 * values * static_cast<double>(num_rows) / kFlopsPerUs);
}

}  // namespace

// Cuts the rows of one group into entries of gemm_rows_ that a task can hold.
void CpuKernels::add_gemm_rows(GemmRows rows, const GemmStrides& strides) {
    const int64_t all = rows.num_rows, parts = ceil_div(all, kGemmMaxRows);
    const GemmRows first = rows;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t row = all * part / parts;
        if (first.x != nullptr) rows.x = first.x + row * strides.x;
        if (first.rounded != nullptr) rows.rounded = first.rounded + row * strides.x;
        if (first.wire != nullptr) rows.wire = first.wire + row;
        rows.y = first.y + row * strides.y;
        if (first.x_scales != nullptr) rows.x_scales = first.x_scales + row * strides.x_scales;
        rows.num_rows = all * (part + 1) / parts - row;
        gemm_rows_.push_back(rows);
    }
}

// Every entry of gemm_rows_ times the panels of its group, both split among the threads.
void CpuKernels::run_gemm(const Weight& weight, const GemmStrides& strides) {
    const WeightSpec& spec = weight.spec;
    const int64_t num_entries = static_cast<int64_t>(gemm_rows_.size());
    const int64_t num_panels = ceil_div(spec.out, kPanelColumns);
    if (num_entries == 0 || num_panels == 0) return;
    if (spec.in == 0) {
        for (const GemmRows& rows : gemm_rows_)
            for (int64_t row = 0; row < rows.num_rows; ++row)
                std::fill_n(rows.y + row * strides.y, spec.out, 0.0f);
        return;
    }
    double us = 0;
    for (const GemmRows& rows : gemm_rows_) us += cost_us(spec, rows.num_rows);
    if (threads_.num_threads() == 1 || us < kSerialUs) {
        for (const GemmRows& rows : gemm_rows_)
            gemm_panels(weight, rows, strides, 0, num_panels, threads_.scratch(0));
        return;
    }
    const int64_t num_threads = threads_.num_threads();
    int64_t ranges = ceil_div(kTasksPerThread * num_threads, num_entries);
    if (num_entries < kTasksPerThread * num_threads)  // all threads end together
        while (ranges * num_entries % num_threads != 0) ++ranges;
    ranges = std::clamp<int64_t>(ranges, 1, num_panels);
    threads_.parallel_for(num_entries * ranges, [&](int64_t task, int thread) {
        const int64_t range = task % ranges;
        const int64_t first = num_panels * range / ranges;
        gemm_panels(weight, gemm_rows_[static_cast<size_t>(task / ranges)], strides, first,
                    num_panels * (range + 1) / ranges - first, threads_.scratch(thread));
    });
}

void CpuKernels::gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) {
    const int64_t offsets[] = {0, x.rows()};
    grouped_gemm(x, offsets, w, y, x_scales);
}

void CpuKernels::grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                              const Tensor& y, const Tensor* x_scales) {
    const bool is_f32 = x.dtype() == DType::f32;
    check_shape(x, "x", is_f32 ? DType::f32 : row_dtype(w.spec.dtype, w.spec.in),
                {x.rows(), w.spec.in});
    check_shape(y, "y", DType::f32, {x.rows(), w.spec.out});
    FERRY_CHECK(static_cast<int64_t>(offsets.size()) == w.spec.groups + 1 && offsets[0] == 0 &&
                    offsets.back() == x.rows(),
                "{} offsets for {} groups, rows {}", offsets.size(), w.spec.groups, x.rows());
    if (x_scales != nullptr) {
        FERRY_CHECK(w.spec.dtype == DType::fp8_e4m3, "scaled activations for {} weights",
                    to_string(w.spec.dtype));
        check_shape(*x_scales, "x_scales", DType::f32,
                    {x.rows(), ceil_div(w.spec.in, kScaleBlock)});
    }
    GemmStrides strides = strides_for(w.spec);
    strides.x = x.row_stride();
    strides.y = y.row_stride();
    if (x_scales != nullptr) strides.x_scales = x_scales->row_stride();
    gemm_rows_.clear();
    for (int64_t group = 0; group < w.spec.groups; ++group) {
        const int64_t begin = offsets[static_cast<size_t>(group)];
        add_gemm_rows({.x = is_f32 ? x.row<float>(begin) : nullptr,
                       .rounded = is_f32 ? nullptr : x.row<uint16_t>(begin),
                       .y = y.row<float>(begin),
                       .x_scales = x_scales != nullptr ? x_scales->row<float>(begin) : nullptr,
                       .group = group,
                       .num_rows = offsets[static_cast<size_t>(group + 1)] - begin},
                      strides);
    }
    run_gemm(w, strides);
}

void CpuKernels::grouped_gemm_wire(const WireRows& x, std::span<const int64_t> offsets,
                                   const Weight& w, const Tensor& y) {
    check_shape(y, "y", DType::f32, {x.count(), w.spec.out});
    FERRY_CHECK(x.dim == w.spec.in && static_cast<int64_t>(offsets.size()) == w.spec.groups + 1 &&
                    offsets[0] == 0 && offsets.back() == x.count(),
                "{} rows of {} for {} groups of {}, {} offsets", x.count(), x.dim, w.spec.groups,
                w.spec.in, offsets.size());
    GemmStrides strides = strides_for(w.spec);
    strides.y = y.row_stride();
    strides.wire_dtype = x.dtype;
    gemm_rows_.clear();
    for (int64_t group = 0; group < w.spec.groups; ++group) {
        const int64_t begin = offsets[static_cast<size_t>(group)];
        add_gemm_rows({.wire = x.rows.data() + begin,
                       .y = y.row<float>(begin),
                       .group = group,
                       .num_rows = offsets[static_cast<size_t>(group + 1)] - begin},
                      strides);
    }
    run_gemm(w, strides);
}

void CpuKernels::grouped_gemm(const Tensor& x, const int64_t* device_offsets, const Weight& w,
                              const Tensor& y, const Tensor* x_scales) {
    const std::span offsets(device_offsets, static_cast<size_t>(w.spec.groups) + 1);
    const int64_t rows = offsets.back();
    const Tensor scales = x_scales != nullptr ? x_scales->slice_rows(0, rows) : Tensor();
    grouped_gemm(x.slice_rows(0, rows), offsets, w, y.slice_rows(0, rows),
                 x_scales != nullptr ? &scales : nullptr);
}

void CpuKernels::head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                           const Tensor& y) {
    check_shape(y, "y", DType::f32, {x.rows(), w.spec.groups, w.spec.out});
    FERRY_CHECK(x.dtype() == DType::f32 && x_head_stride >= w.spec.in &&
                    (w.spec.groups - 1) * x_head_stride + w.spec.in <= x.row_size(),
                "heads of {} every {} in x {}", w.spec.in, x_head_stride, x.describe());
    GemmStrides strides = strides_for(w.spec);
    strides.x = x.row_stride();
    strides.y = y.row_stride();
    gemm_rows_.clear();
    for (int64_t head = 0; head < w.spec.groups; ++head)
        add_gemm_rows({.x = x.as<float>() + head * x_head_stride,
                       .y = y.as<float>() + head * w.spec.out,
                       .group = head,
                       .num_rows = x.rows()},
                      strides);
    run_gemm(w, strides);
}

}  // namespace ferry
