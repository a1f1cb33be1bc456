// Weights on the GPU and the products with them. Few rows and fp8 weights: an own kernel
// (few_rows.h). Else cuBLASLt multiplies; what it cannot take is converted first, into scratch
// memory.
#include "base/error.h"
#include "layers/cuda/convert.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/few_rows.h"
#include "layers/cuda/weight_layout.h"

namespace ferry {
namespace {

int64_t alignment_of(const Tensor& y) {
    const int64_t stride_bytes = y.row_stride() * size_bytes(y.dtype());
    return reinterpret_cast<uintptr_t>(y.data()) % 16 == 0 && stride_bytes % 16 == 0 ? 16 : 4;
}
int64_t alignment_of(const void* data, int64_t stride_bytes) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0 ? 16 : 4;
}

// bf16 rows of scratch memory begin on 16 bytes.
int64_t bf16_stride(int64_t columns) {
    return ceil_div(columns, 8) * 8;
}

const std::byte* matrix(const Weight& weight, int64_t group) {
    return weight.data.as<std::byte>() + group * weight_group_bytes(weight.spec);
}
const float* matrix_scales(const Weight& weight, int64_t group) {
    return weight.scales.as<float>() + group * weight_scale_group_stride(weight.spec);
}

void refuse_nan(const Tensor& w, int64_t first_out) {
    for (int64_t row = 0; row < w.rows(); ++row) {
        const uint8_t* codes = w.row<uint8_t>(row);
        bool found = false;
        for (int64_t k = 0; k < w.dim(1); ++k) found |= (codes[k] & 0x7fu) == 0x7fu;
        if (found)
            throw Error(ErrorKind::checkpoint,
                        "an fp8 weight of row {} is NaN; the checkpoint is damaged or was "
                        "quantised badly",
                        first_out + row);
    }
}

}  // namespace

int64_t CudaKernels::packed_bytes(const WeightSpec& spec) const {
    return spec.groups * weight_group_bytes(spec);
}

Weight CudaKernels::make_weight(const WeightSpec& spec) {
    FERRY_CHECK(spec.dtype == DType::f32 || spec.dtype == DType::bf16 ||
                    spec.dtype == DType::fp8_e4m3 || spec.dtype == DType::int4x2,
                "weights of {}", to_string(spec.dtype));
    Weight weight{.spec = spec,
                  .data = Buffer(device_, static_cast<size_t>(packed_bytes(spec))),
                  .scales = {}};
    if (spec.dtype == DType::fp8_e4m3)
        weight.scales =
            Buffer(device_, static_cast<size_t>(4 * spec.groups * weight_scale_group_stride(spec)));
    return weight;
}

void CudaKernels::pack(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                       const Tensor* scales) {
    const WeightSpec& spec = weight.spec;
    check_shape(w, "w", spec.dtype, {w.rows(), stored_columns(spec.dtype, spec.in)});
    FERRY_CHECK(group >= 0 && group < spec.groups && first_out % kScaleBlock == 0 &&
                    first_out + w.rows() <= spec.out &&
                    (w.rows() % kScaleBlock == 0 || first_out + w.rows() == spec.out),
                "rows {}+{} of group {} into {} groups of {}", first_out, w.rows(), group,
                spec.groups, spec.out);
    if (spec.dtype == DType::int4x2) return pack_int4(weight, group, first_out, w, scales);
    if (spec.dtype == DType::fp8_e4m3) refuse_nan(w, first_out);
    const auto element = static_cast<size_t>(size_bytes(spec.dtype));
    const size_t pitch = static_cast<size_t>(weight_row_stride(spec)) * element;
    auto* to =
        weight.data.as<std::byte>() + static_cast<size_t>(group * spec.out + first_out) * pitch;
    upload_.copy(to, pitch, w.data(), static_cast<size_t>(w.row_stride()) * element,
                 static_cast<size_t>(spec.in) * element, static_cast<size_t>(w.rows()));
    if (spec.dtype != DType::fp8_e4m3) return;
    FERRY_CHECK(scales != nullptr, "fp8 weights without scales");
    const int64_t blocks = ceil_div(spec.in, kScaleBlock);
    check_shape(*scales, "scales", DType::f32, {ceil_div(w.rows(), kScaleBlock), blocks});
    float* scales_to = weight.scales.as<float>() + group * weight_scale_group_stride(spec) +
                       first_out / kScaleBlock * weight_scale_stride(spec);
    upload_.copy(scales_to, static_cast<size_t>(weight_scale_stride(spec)) * sizeof(float),
                 scales->data(), static_cast<size_t>(scales->row_stride()) * sizeof(float),
                 static_cast<size_t>(blocks) * sizeof(float), static_cast<size_t>(scales->rows()));
}

// Whole rows of tiles.
void CudaKernels::pack_int4(Weight& weight, int64_t group, int64_t first_out, const Tensor& w,
                            const Tensor* scales) {
    const WeightSpec& spec = weight.spec;
    FERRY_CHECK(scales != nullptr && spec.in % kInt4Group == 0, "int4 weights [{}, {}]", spec.out,
                spec.in);
    check_shape(*scales, "scales", DType::bf16, {w.rows(), spec.in / kInt4Group});
    thread_local std::vector<std::byte> tiles;
    const auto row_bytes = static_cast<size_t>(int4_tiles(1, spec.in) * kInt4TileBytes);
    const auto num = static_cast<size_t>(ceil_div(w.rows(), kInt4TileRows));
    tiles.resize(num * row_bytes);
    pack_int4_tiles(w, *scales, tiles.data());
    std::byte* const to = weight.data.as<std::byte>() + group * weight_group_bytes(spec) +
                          first_out / kInt4TileRows * static_cast<int64_t>(row_bytes);
    upload_.copy(to, row_bytes, tiles.data(), row_bytes, row_bytes, num);
}

void CudaKernels::unpack(const Weight& weight, int64_t group, const Tensor& w_f32) {
    const WeightSpec& spec = weight.spec;
    check_shape(w_f32, "w_f32", DType::f32, {spec.out, spec.in});
    const int64_t stride = weight_row_stride(spec);
    std::vector<std::byte> host(static_cast<size_t>(weight_group_bytes(spec)));
    device_.copy_to_host(host.data(), matrix(weight, group), host.size());
    if (spec.dtype == DType::int4x2) return unpack_int4_tiles(host.data(), w_f32);
    std::vector<float> scales;
    if (spec.dtype == DType::fp8_e4m3) {
        scales.resize(static_cast<size_t>(weight_scale_group_stride(spec)));
        device_.copy_to_host(scales.data(), matrix_scales(weight, group), scales.size() * 4);
    }
    for (int64_t i = 0; i < spec.out; ++i)
        for (int64_t k = 0; k < spec.in; ++k) {
            const int64_t at = i * stride + k;
            float value = 0;
            if (spec.dtype == DType::f32)
                value = reinterpret_cast<const float*>(host.data())[at];
            else if (spec.dtype == DType::bf16)
                value = bf16_to_f32(reinterpret_cast<const uint16_t*>(host.data())[at]);
            else
                value = fp8_e4m3_to_f32(static_cast<uint8_t>(host[static_cast<size_t>(at)])) *
                        scales[static_cast<size_t>(i / kScaleBlock * weight_scale_stride(spec) +
                                                   k / kScaleBlock)];
            w_f32.row<float>(i)[k] = value;
        }
}

void* CudaKernels::scratch(Scratch use, size_t size_bytes) {
    Buffer& buffer = scratch_[static_cast<size_t>(use)];
    if (buffer.size_bytes() >= size_bytes) return buffer.data();
    // Sizes settle in the first steps.
    FERRY_CHECK(!is_recording(device_), "scratch memory grows while a CUDA graph is recorded");
    size_t size = std::max(size_bytes, size_t{1} << 20);
    if (keeps_scratch_) {  // what is kept is in all no more than what is in use
        size = std::max(size, 2 * buffer.size_bytes());
        kept_scratch_.push_back(std::move(buffer));
    }
    buffer = Buffer();  // freeing waits for the kernels that use it
    buffer = Buffer(device_, size);
    return buffer.data();
}

void CudaKernels::multiply(const GemmShape& shape, const GemmOperands& operands) {
    const GemmPlan& plan = cublas_.plan(shape);
    if (!plan.possible) throw Error(ErrorKind::usage, "cuBLASLt cannot do {}", shape.describe());
    cublas_.run(plan, operands);
}

const uint16_t* CudaKernels::narrowed(const Tensor& x, int64_t heads, int64_t head_stride,
                                      int64_t columns) {
    const int64_t stride = bf16_stride(columns);
    auto* y = static_cast<uint16_t*>(
        scratch(Scratch::x, static_cast<size_t>(2 * x.rows() * heads * stride)));
    narrow_to_bf16({.x = x.as<float>(),
                    .y = y,
                    .rows = x.rows(),
                    .heads = heads,
                    .columns = columns,
                    .x_row_stride = x.row_stride(),
                    .x_head_stride = head_stride,
                    .y_stride = stride},
                   stream());
    return y;
}

const uint16_t* CudaKernels::widened(const Tensor& x, const Tensor& x_scales) {
    const int64_t stride = bf16_stride(x.dim(1));
    auto* y =
        static_cast<uint16_t*>(scratch(Scratch::x, static_cast<size_t>(2 * x.rows() * stride)));
    widen_fp8({.x = x.as<uint8_t>(),
               .scales = x_scales.as<float>(),
               .y = y,
               .rows = x.rows(),
               .columns = x.dim(1),
               .x_stride = x.row_stride(),
               .scales_stride = x_scales.row_stride(),
               .y_stride = stride,
               .rows_per_scale = 1},
              stream());
    return y;
}

const uint16_t* CudaKernels::widened(const Weight& w, int64_t group) {
    const int64_t stride = bf16_stride(w.spec.in);
    auto* y =
        static_cast<uint16_t*>(scratch(Scratch::w, static_cast<size_t>(2 * w.spec.out * stride)));
    widen_fp8({.x = reinterpret_cast<const uint8_t*>(matrix(w, group)),
               .scales = matrix_scales(w, group),
               .y = y,
               .rows = w.spec.out,
               .columns = w.spec.in,
               .x_stride = weight_row_stride(w.spec),
               .scales_stride = weight_scale_stride(w.spec),
               .y_stride = stride,
               .rows_per_scale = kScaleBlock},
              stream());
    return y;
}

// A few rows with fp8 weights, whatever the GPU. False when they are too many, do not begin on 16
// bytes or are so wide that their scales do not fit a block's shared memory.
bool CudaKernels::multiply_few_rows(const Tensor& x, const Tensor* x_scales, const Weight& w,
                                    int64_t group, const Tensor& y) {
    const WeightSpec& spec = w.spec;
    const bool fp8 = x_scales != nullptr;
    const bool library_can = fp8 && info_.capability == 90;
    const int64_t most = library_can ? few_rows_beat_library(spec.out, spec.in) : kFewRowsMost;
    if (spec.dtype != DType::fp8_e4m3 || x.rows() > most || spec.in % 16 != 0 ||
        (fp8 && alignment_of(x.data(), x.row_stride()) != 16))
        return false;
    const GemmShape shape{.inputs = fp8 ? GemmShape::Inputs::fp8 : GemmShape::Inputs::bf16_fp8,
                          .rows = x.rows(),
                          .out = spec.out,
                          .in = spec.in,
                          .x_stride = fp8 ? x.row_stride() : bf16_stride(spec.in),
                          .w_stride = weight_row_stride(spec),
                          .y_stride = y.row_stride()};
    const FewRowsPlan plan = few_rows_plan(shape.rows, shape.out, shape.in, max_shared_bytes_);
    if (plan.shared_bytes(shape.in) > max_shared_bytes_) return false;
    if (const auto [planned, is_new] = few_rows_plans_.try_emplace(shape); is_new)
        planned->second = plan.describe();
    launch_few_rows({.x = fp8 ? x.data() : narrowed(x, 1, 0, spec.in),
                     .x_scales = fp8 ? x_scales->as<float>() : nullptr,
                     .w = reinterpret_cast<const uint8_t*>(matrix(w, group)),
                     .w_scales = matrix_scales(w, group),
                     .y = y.as<float>(),
                     .x_stride = shape.x_stride,
                     .x_scales_stride = fp8 ? x_scales->row_stride() : 0,
                     .w_stride = shape.w_stride,
                     .w_scales_stride = weight_scale_stride(spec),
                     .y_stride = shape.y_stride,
                     .rows = static_cast<int>(shape.rows),
                     .out = static_cast<int>(shape.out),
                     .in = static_cast<int>(shape.in)},
                    plan, stream());
    return true;
}

// fp8 by fp8 where the GPU and the shape allow it. False when they do not. cuBLASLt takes multiples
// of four rows: a few that are left over are copied to where there is room for more. Of up to
// kCopiedRows all are, so that weights are read once; of more only the last.
bool CudaKernels::multiply_fp8(const Tensor& x, const Tensor& x_scales, const Weight& w,
                               int64_t group, const Tensor& y) {
    constexpr int64_t kCopiedRows = 128;
    if (info_.capability != 90) return false;
    const int64_t rows = x.rows(), out = w.spec.out, in = w.spec.in;
    const int64_t over = rows % kFp8Multiple;
    const int64_t copied = over == 0 ? 0 : rows <= kCopiedRows ? rows : over;
    const int64_t in_place = rows - copied;
    const int64_t padded = ceil_div(copied, kFp8Multiple) * kFp8Multiple;
    const int64_t y_row_bytes = out * size_bytes(y.dtype());
    const GemmShape as_it_is{
        .inputs = GemmShape::Inputs::fp8,
        .bf16_result = y.dtype() == DType::bf16,
        .rows = in_place,
        .out = out,
        .in = in,
        .x_stride = x.row_stride(),
        .w_stride = weight_row_stride(w.spec),
        .y_stride = y.row_stride(),
        .alignment = std::min(alignment_of(x.data(), x.row_stride()), alignment_of(y))};
    GemmShape with_room = as_it_is;
    with_room.rows = padded;
    with_room.x_stride = in;
    with_room.y_stride = out;
    with_room.alignment = alignment_of(nullptr, in);
    const GemmPlan* plan = in_place > 0 ? &cublas_.plan(as_it_is) : nullptr;
    const GemmPlan* room_plan = copied > 0 ? &cublas_.plan(with_room) : nullptr;
    if ((plan != nullptr && !plan->possible) || (room_plan != nullptr && !room_plan->possible))
        return false;

    auto* scales = static_cast<float*>(
        scratch(Scratch::scales, static_cast<size_t>(4 * (in_place + padded) * x_scales.dim(1))));
    GemmOperands operands{.x = x.data(),
                          .w = matrix(w, group),
                          .y = y.data(),
                          .x_scales = scales,
                          .w_scales = matrix_scales(w, group)};
    if (plan != nullptr) {
        transpose(x_scales.slice_rows(0, in_place), scales, in_place, stream());
        cublas_.run(*plan, operands);
    }
    if (room_plan == nullptr) return true;
    auto* x_room = static_cast<uint8_t*>(
        scratch(Scratch::x, static_cast<size_t>(padded * (in + y_row_bytes))));
    uint8_t* y_room = x_room + padded * in;                    // in is a multiple of 16
    float* room_scales = scales + in_place * x_scales.dim(1);  // in_place is one of 4
    copy_rows(x.row<uint8_t>(in_place), x.row_stride(), x_room, in, in, copied, stream());
    transpose(x_scales.slice_rows(in_place, copied), room_scales, padded, stream());
    operands.x = x_room;
    operands.x_scales = room_scales;
    operands.y = y_room;
    cublas_.run(*room_plan, operands);
    const int64_t y_pitch = y.row_stride() * size_bytes(y.dtype());
    copy_rows(y_room, y_row_bytes, y.row<std::byte>(in_place), y_pitch, y_row_bytes, copied,
              stream());
    return true;
}

void CudaKernels::gemm_group(const Tensor& x, const Weight& w, int64_t group, const Tensor& y,
                             const Tensor* x_scales) {
    const WeightSpec& spec = w.spec;
    const int64_t rows = x.rows();
    check_shape(x, "x", x_scales ? DType::fp8_e4m3 : DType::f32, {rows, spec.in});
    check_shape(y, "y", y.dtype() == DType::bf16 ? DType::bf16 : DType::f32, {rows, spec.out});
    if (x_scales)
        check_shape(*x_scales, "x_scales", DType::f32, {rows, ceil_div(spec.in, kScaleBlock)});
    FERRY_CHECK(!x_scales || spec.dtype == DType::fp8_e4m3, "fp8 activations and {} weights",
                to_string(spec.dtype));
    FERRY_CHECK(spec.dtype != DType::int4x2, "int4 weights in a product that is not grouped");
    if (y.empty()) return;
    if (spec.dtype == DType::f32 && y.dtype() == DType::bf16) {  // no such product
        auto* sums =
            static_cast<float*>(scratch(Scratch::x, static_cast<size_t>(4 * rows * spec.out)));
        gemm_group(x, w, group, Tensor(sums, DType::f32, {rows, spec.out}), nullptr);
        narrow_to_bf16({.x = sums,
                        .y = y.as<uint16_t>(),
                        .rows = rows,
                        .columns = spec.out,
                        .x_row_stride = spec.out,
                        .y_stride = y.row_stride()},
                       stream());
        return;
    }
    if (y.dtype() == DType::f32 && multiply_few_rows(x, x_scales, w, group, y)) return;
    if (x_scales && multiply_fp8(x, *x_scales, w, group, y)) return;

    GemmShape shape{.inputs = GemmShape::Inputs::bf16,
                    .bf16_result = y.dtype() == DType::bf16,
                    .rows = rows,
                    .out = spec.out,
                    .in = spec.in,
                    .x_stride = bf16_stride(spec.in),
                    .w_stride = weight_row_stride(spec),
                    .y_stride = y.row_stride(),
                    .alignment = alignment_of(y)};
    GemmOperands operands{.w = matrix(w, group), .y = y.data()};
    if (spec.dtype == DType::f32) {
        shape.inputs = GemmShape::Inputs::f32;
        shape.x_stride = x.row_stride();
        shape.alignment = std::min(shape.alignment, alignment_of(x.data(), 4 * x.row_stride()));
        operands.x = x.data();
    } else {
        operands.x = x_scales ? widened(x, *x_scales) : narrowed(x, 1, 0, spec.in);
    }
    if (spec.dtype == DType::fp8_e4m3) {
        operands.w = widened(w, group);
        shape.w_stride = bf16_stride(spec.in);
    }
    multiply(shape, operands);
}

void CudaKernels::gemm(const Tensor& x, const Weight& w, const Tensor& y, const Tensor* x_scales) {
    FERRY_CHECK(w.spec.groups == 1, "{} groups", w.spec.groups);
    gemm_group(x, w, 0, y, x_scales);
}

// In one launch too, unless groups are so large that cuBLASLt, group by group, is faster; of int4
// always, which the library does not know.
void CudaKernels::grouped_gemm(const Tensor& x, std::span<const int64_t> offsets, const Weight& w,
                               const Tensor& y, const Tensor* x_scales) {
    constexpr int64_t kManyRows = 512;
    const int64_t groups = w.spec.groups;
    FERRY_CHECK(static_cast<int64_t>(offsets.size()) == groups + 1, "{} offsets of {} groups",
                offsets.size(), groups);
    const bool own = w.spec.dtype == DType::int4x2 || (w.spec.dtype != DType::f32 && groups > 1 &&
                                                       offsets.back() < groups * kManyRows);
    if (own) return grouped_gemm(x, step_arrays_.on_device(offsets), w, y, x_scales);
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = offsets[static_cast<size_t>(group)];
        const int64_t rows = offsets[static_cast<size_t>(group) + 1] - first;
        if (rows == 0) continue;
        const Tensor scales = x_scales ? x_scales->slice_rows(first, rows) : Tensor();
        gemm_group(x.slice_rows(first, rows), w, group, y.slice_rows(first, rows),
                   x_scales ? &scales : nullptr);
    }
}

void CudaKernels::head_gemm(const Tensor& x, int64_t x_head_stride, const Weight& w,
                            const Tensor& y) {
    const WeightSpec& spec = w.spec;
    const int64_t rows = x.rows(), heads = spec.groups;
    FERRY_CHECK(spec.dtype != DType::int4x2, "int4 weights in a product that is not grouped");
    FERRY_CHECK(x.dtype() == DType::f32 && y.dtype() == DType::f32 && y.rows() == rows &&
                    y.row_size() == heads * spec.out &&
                    x.row_size() >= (heads - 1) * x_head_stride + spec.in,
                "x {}, heads {} apart, y {}, weights [{}, {}, {}]", x.describe(), x_head_stride,
                y.describe(), heads, spec.out, spec.in);
    if (y.empty()) return;
    if (spec.dtype == DType::fp8_e4m3) {  // no batch of widened matrices: head by head
        for (int64_t head = 0; head < heads; ++head)
            gemm_group(x.reshape({rows, x.row_size()}).slice_columns(head * x_head_stride, spec.in),
                       w, head,
                       y.reshape({rows, y.row_size()}).slice_columns(head * spec.out, spec.out),
                       nullptr);
        return;
    }
    GemmShape shape{.inputs = GemmShape::Inputs::bf16,
                    .rows = rows,
                    .out = spec.out,
                    .in = spec.in,
                    .x_stride = heads * bf16_stride(spec.in),
                    .w_stride = weight_row_stride(spec),
                    .y_stride = y.row_stride(),
                    .batch = heads,
                    .x_batch_stride = bf16_stride(spec.in),
                    .w_batch_stride = weight_group_stride(spec),
                    .y_batch_stride = spec.out,
                    .alignment = std::min(alignment_of(y), alignment_of(nullptr, 4 * spec.out))};
    GemmOperands operands{.w = w.data.data(), .y = y.as<float>()};
    if (spec.dtype == DType::f32) {
        shape.inputs = GemmShape::Inputs::f32;
        shape.x_stride = x.row_stride();
        shape.x_batch_stride = x_head_stride;
        shape.alignment = std::min({shape.alignment, alignment_of(x.data(), 4 * x.row_stride()),
                                    alignment_of(nullptr, 4 * x_head_stride)});
        operands.x = x.data();
    } else {
        operands.x = narrowed(x, heads, x_head_stride, spec.in);
    }
    multiply(shape, operands);
}

std::vector<std::string> CudaKernels::describe_plans() const {
    std::vector<std::string> lines;
    for (const auto& [shape, plan] : few_rows_plans_)
        lines.push_back(shape.describe() + ": " + plan);
    for (const GemmPlan* plan : cublas_.plans()) lines.push_back(plan->describe());
    return lines;
}

}  // namespace ferry
