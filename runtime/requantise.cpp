#include "runtime/requantise.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/error.h"

namespace ferry {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kChunkBytes = int64_t{8} << 20;

const std::array<float, 256>& fp8_table() {
    static const std::array<float, 256> table = [] {
        std::array<float, 256> values{};
        for (int code = 0; code < 256; ++code)
            values[code] = fp8_e4m3_to_f32(static_cast<uint8_t>(code));
        return values;
    }();
    return table;
}

// A tensor as groups (experts; one when it has none) of matrices of values; a vector is one row.
struct Matrices {
    int64_t rows, columns;

    static Matrices of(const TensorInfo& info) {
        const std::vector<int64_t>& shape = info.shape;
        return {shape.size() == 1 ? 1 : shape[shape.size() - 2],
                num_values(info.dtype, shape.back())};
    }
    // As many rows as fit into a chunk, whole blocks of them.
    int64_t chunk_rows() const {
        const int64_t fitting = kChunkBytes / std::max<int64_t>(1, columns * 4) / kBlock * kBlock;
        return std::clamp<int64_t>(fitting, kBlock, std::max(kBlock, rows));
    }
};

// Rows of one matrix as f32.
void widen(const void* data, DType dtype, int64_t count, float* out) {
    if (dtype == DType::f32) {
        std::copy_n(static_cast<const float*>(data), count, out);
    } else if (dtype == DType::bf16) {
        const auto* in = static_cast<const uint16_t*>(data);
        for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(in[i]);
    } else if (dtype == DType::int4x2) {
        const auto* in = static_cast<const uint8_t*>(data);
        for (int64_t i = 0; i < count; ++i)
            out[i] = static_cast<float>(int4_value(in[i / 2], i % 2));
    } else {
        const auto* in = static_cast<const uint8_t*>(data);
        const std::array<float, 256>& table = fp8_table();
        for (int64_t i = 0; i < count; ++i) out[i] = table[in[i]];
    }
}

// Rows that begin at a block, times the scales of their blocks.
void apply_scales(float* values, int64_t rows, int64_t columns, const float* scales,
                  const ScaleForm& form) {
    const int64_t blocks_per_row = (columns + form.columns - 1) / form.columns;
    for (int64_t r = 0; r < rows; ++r) {
        const float* row_scales = scales + r / form.rows * blocks_per_row;
        float* row = values + r * columns;
        for (int64_t c = 0; c < columns; ++c) row[c] *= row_scales[c / form.columns];
    }
}

// One block of up to 128x128; gives its scale.
float quantise_block(const float* values, int64_t rows, int64_t block_columns, int64_t columns,
                     uint8_t* out) {
    float largest = 0;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < block_columns; ++c)
            largest = std::max(largest, std::fabs(values[r * columns + c]));
    const float scale = largest > 0 ? largest / kFp8Max : 1.0f;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < block_columns; ++c)
            out[r * columns + c] = f32_to_fp8_e4m3(values[r * columns + c] / scale);
    return scale;
}

// kInt4Group values as codes; gives their scale. Its sign makes the value of largest magnitude -8.
uint16_t quantise_group(const float* values, uint8_t* out) {
    float extreme = 0;
    for (int64_t i = 0; i < kInt4Group; ++i) {
        if (!std::isfinite(values[i]))
            throw Error(ErrorKind::checkpoint, "a weight is not a finite number; int4 has none");
        if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
    }
    const uint16_t bits = f32_to_bf16(extreme / -8);
    const float scale = bf16_to_f32(bits);
    const auto code = [&](float value) {
        const float steps = scale == 0 ? 0 : std::nearbyint(value / scale);
        return static_cast<unsigned>(std::clamp(steps, -8.0f, 7.0f) + 8);
    };
    for (int64_t i = 0; i < kInt4Group; i += 2)
        out[i / 2] = static_cast<uint8_t>(code(values[i]) | code(values[i + 1]) << 4);
    return bits;
}

class Requantiser {
  public:
    Requantiser(const StoredTensor& tensor, const StoredTensor* scales, DType dtype,
                const RequantiseSink& sink)
        : tensor_(tensor),
          scales_(scales),
          dtype_(dtype),
          sink_(sink),
          matrix_(Matrices::of(tensor.info)) {}

    // Matrix `group` of a tensor of experts, or the one matrix or vector.
    void run(int64_t group) {
        for (int64_t row = 0; row < matrix_.rows; row += matrix_.chunk_rows())
            run_chunk(group, row, std::min(matrix_.chunk_rows(), matrix_.rows - row));
    }

  private:
    std::vector<Range> box(const TensorInfo& info, int64_t group, int64_t row, int64_t rows) const {
        std::vector<Range> ranges = whole_box(info.shape);
        if (ranges.size() == 3) ranges[0] = {group, 1};
        if (ranges.size() >= 2) ranges[ranges.size() - 2] = {row, rows};
        return ranges;
    }

    void run_chunk(int64_t group, int64_t row, int64_t rows) {
        const DType stored = tensor_.info.dtype;
        const int64_t count = rows * matrix_.columns;
        raw_.resize(static_cast<size_t>(stored_columns(stored, count) * size_bytes(stored)));
        read_box(tensor_, box(tensor_.info, group, row, rows), raw_.data());
        if (stored == dtype_) {
            sink_.weight(raw_.data(), raw_.size());
            return;
        }
        values_.resize(static_cast<size_t>(count));
        widen(raw_.data(), stored, count, values_.data());
        if (const std::optional<ScaleForm> form = scale_form(stored)) {
            read_scales(*form, group, row, rows);
            apply_scales(values_.data(), rows, matrix_.columns, block_scales_.data(), *form);
        }
        narrow(rows);
    }

    // Of rows of the stored tensor, as f32.
    void read_scales(const ScaleForm& form, int64_t group, int64_t row, int64_t rows) {
        const int64_t blocks = (rows + form.rows - 1) / form.rows;
        const int64_t count = blocks * scales_->info.shape.back();
        scale_bytes_.resize(static_cast<size_t>(count * size_bytes(form.dtype)));
        read_box(*scales_, box(scales_->info, group, row / form.rows, blocks), scale_bytes_.data());
        block_scales_.resize(static_cast<size_t>(count));
        widen(scale_bytes_.data(), form.dtype, count, block_scales_.data());
    }

    void narrow(int64_t rows) {
        const int64_t count = rows * matrix_.columns;
        if (dtype_ == DType::f32) {
            sink_.weight(values_.data(), static_cast<size_t>(count) * sizeof(float));
        } else if (dtype_ == DType::bf16) {
            raw_.resize(static_cast<size_t>(count) * 2);
            auto* out = reinterpret_cast<uint16_t*>(raw_.data());
            for (int64_t i = 0; i < count; ++i) out[i] = f32_to_bf16(values_[i]);
            sink_.weight(raw_.data(), raw_.size());
        } else if (dtype_ == DType::int4x2) {
            quantise_int4(count);
        } else {
            quantise(rows);
        }
    }

    void quantise_int4(int64_t count) {
        raw_.resize(static_cast<size_t>(count / 2));
        auto* out = reinterpret_cast<uint8_t*>(raw_.data());
        std::vector<uint16_t> scales;
        for (int64_t i = 0; i < count; i += kInt4Group)
            scales.push_back(quantise_group(values_.data() + i, out + i / 2));
        sink_.weight(raw_.data(), raw_.size());
        sink_.scales(scales.data(), scales.size() * sizeof(uint16_t));
    }

    void quantise(int64_t rows) {
        const int64_t columns = matrix_.columns;
        raw_.resize(static_cast<size_t>(rows * columns));
        auto* out = reinterpret_cast<uint8_t*>(raw_.data());
        block_scales_.clear();
        for (int64_t r = 0; r < rows; r += kBlock)
            for (int64_t c = 0; c < columns; c += kBlock)
                block_scales_.push_back(
                    quantise_block(values_.data() + r * columns + c, std::min(kBlock, rows - r),
                                   std::min(kBlock, columns - c), columns, out + r * columns + c));
        sink_.weight(raw_.data(), raw_.size());
        sink_.scales(block_scales_.data(), block_scales_.size() * sizeof(float));
    }

    const StoredTensor& tensor_;
    const StoredTensor* scales_;
    DType dtype_;
    const RequantiseSink& sink_;
    Matrices matrix_;
    std::vector<std::byte> raw_, scale_bytes_;
    std::vector<float> values_;
    std::vector<float> block_scales_;
};

}  // namespace

void requantise(const StoredTensor& tensor, const StoredTensor* scales, int64_t first_row,
                int64_t num_rows, DType dtype, const RequantiseSink& sink) {
    const bool has_scales = scale_form(tensor.info.dtype).has_value();
    FERRY_CHECK(!has_scales || scales != nullptr, "{} without scales",
                to_string(tensor.info.dtype));
    Requantiser requantiser(tensor, scales, dtype, sink);
    if (tensor.info.shape.size() < 3) {
        requantiser.run(0);
    } else {
        for (int64_t group = first_row; group < first_row + num_rows; ++group)
            requantiser.run(group);
    }
    if (has_scales && tensor.info.dtype == dtype) {
        std::vector<Range> box = whole_box(scales->info.shape);
        if (box.size() == 3) box[0] = {first_row, num_rows};
        int64_t count = 1;
        for (const Range& range : box) count *= range.num;
        std::vector<std::byte> values(static_cast<size_t>(count * size_bytes(scales->info.dtype)));
        read_box(*scales, box, values.data());
        sink.scales(values.data(), values.size());
    }
}

}  // namespace ferry
