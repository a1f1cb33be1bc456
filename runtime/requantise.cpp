#include "runtime/requantise.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"

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

// A tensor as groups (experts; one when it has none) of matrices; a vector is one row.
struct Matrices {
    int64_t rows, columns;

    static Matrices of(const std::vector<int64_t>& shape) {
        const int64_t columns = shape.back();
        return {shape.size() == 1 ? 1 : shape[shape.size() - 2], columns};
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
    } else {
        const auto* in = static_cast<const uint8_t*>(data);
        const std::array<float, 256>& table = fp8_table();
        for (int64_t i = 0; i < count; ++i) out[i] = table[in[i]];
    }
}

// Rows that begin at a block, times the scales of their blocks.
void apply_scales(float* values, int64_t rows, int64_t columns, const float* scales,
                  int64_t blocks_per_row) {
    for (int64_t r = 0; r < rows; ++r) {
        const float* row_scales = scales + r / kBlock * blocks_per_row;
        float* row = values + r * columns;
        for (int64_t c = 0; c < columns; ++c) row[c] *= row_scales[c / kBlock];
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

class Requantiser {
  public:
    Requantiser(const StoredTensor& tensor, const StoredTensor* scales, DType dtype,
                const RequantiseSink& sink)
        : tensor_(tensor),
          scales_(scales),
          dtype_(dtype),
          sink_(sink),
          matrix_(Matrices::of(tensor.info.shape)),
          blocks_per_row_((matrix_.columns + kBlock - 1) / kBlock) {}

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
        raw_.resize(static_cast<size_t>(count * size_bytes(stored)));
        read_box(tensor_, box(tensor_.info, group, row, rows), raw_.data());
        if (stored == dtype_) {
            sink_.weight(raw_.data(), raw_.size());
            return;
        }
        values_.resize(static_cast<size_t>(count));
        widen(raw_.data(), stored, count, values_.data());
        if (stored == DType::fp8_e4m3) {
            const int64_t blocks = (rows + kBlock - 1) / kBlock;
            block_scales_.resize(static_cast<size_t>(blocks * blocks_per_row_));
            read_box(*scales_, box(scales_->info, group, row / kBlock, blocks),
                     block_scales_.data());
            apply_scales(values_.data(), rows, matrix_.columns, block_scales_.data(),
                         blocks_per_row_);
        }
        narrow(rows);
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
        } else {
            quantise(rows);
        }
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
    int64_t blocks_per_row_;
    std::vector<std::byte> raw_;
    std::vector<float> values_;
    std::vector<float> block_scales_;
};

}  // namespace

void requantise(const StoredTensor& tensor, const StoredTensor* scales, int64_t first_row,
                int64_t num_rows, DType dtype, const RequantiseSink& sink) {
    const bool is_fp8 = tensor.info.dtype == DType::fp8_e4m3;
    FERRY_CHECK(!is_fp8 || dtype == DType::fp8_e4m3 || scales != nullptr, "fp8 without scales");
    Requantiser requantiser(tensor, scales, dtype, sink);
    if (tensor.info.shape.size() < 3) {
        requantiser.run(0);
    } else {
        for (int64_t group = first_row; group < first_row + num_rows; ++group)
            requantiser.run(group);
    }
    if (is_fp8 && dtype == DType::fp8_e4m3) {
        std::vector<Range> box = whole_box(scales->info.shape);
        if (box.size() == 3) box[0] = {first_row, num_rows};
        int64_t count = 1;
        for (const Range& range : box) count *= range.num;
        std::vector<float> values(static_cast<size_t>(count));
        read_box(*scales, box, values.data());
        sink.scales(values.data(), values.size() * sizeof(float));
    }
}

}  // namespace ferry
