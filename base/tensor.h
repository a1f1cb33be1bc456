// A view of elements in somebody's memory: pointer, type, shape. Copies freely, owns nothing.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "base/dtype.h"

namespace ferry {

// Row-major; inner dimensions are contiguous, rows (dimension 0) may be further apart (`row_stride`
// elements), so that a range of columns of a matrix is a view too.
class Tensor {
  public:
    static constexpr int kMaxRank = 4;

    Tensor() = default;
    // Views do not carry constness; kernels say what they write.
    Tensor(const void* data, DType dtype, std::initializer_list<int64_t> shape)
        : data_(const_cast<void*>(data)), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
        FERRY_CHECK(shape.size() >= 1 && shape.size() <= kMaxRank);
        int i = 0;
        for (int64_t extent : shape) shape_[i++] = extent;
        row_stride_ = row_size();
    }

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    template <typename T>
    T* row(int64_t index) const {
        return reinterpret_cast<T*>(static_cast<std::byte*>(data_) +
                                    index * row_stride_ * size_bytes(dtype_));
    }
    void* data() const { return data_; }
    DType dtype() const { return dtype_; }
    int rank() const { return rank_; }
    int64_t dim(int i) const { return shape_[i]; }
    int64_t rows() const { return shape_[0]; }
    int64_t row_stride() const { return row_stride_; }
    bool empty() const { return count() == 0; }
    bool contiguous() const { return row_stride_ == row_size() || shape_[0] <= 1; }

    // Elements of one row (all dimensions but the first), and of the whole view.
    int64_t row_size() const {
        int64_t size = 1;
        for (int i = 1; i < rank_; ++i) size *= shape_[i];
        return size;
    }
    int64_t count() const { return rank_ == 0 ? 0 : shape_[0] * row_size(); }

    // Rows [begin, begin + num).
    Tensor slice_rows(int64_t begin, int64_t num) const {
        FERRY_CHECK(begin >= 0 && num >= 0 && begin + num <= shape_[0], "rows {}+{} of {}", begin,
                    num, describe());
        Tensor view = *this;
        view.data_ = row<std::byte>(begin);
        view.shape_[0] = num;
        return view;
    }
    // Columns [begin, begin + num) of a matrix.
    Tensor slice_columns(int64_t begin, int64_t num) const {
        FERRY_CHECK(rank_ == 2 && begin >= 0 && begin + num <= shape_[1], "columns {}+{} of {}",
                    begin, num, describe());
        Tensor view = *this;
        view.data_ = static_cast<std::byte*>(data_) + begin * size_bytes(dtype_);
        view.shape_[1] = num;
        return view;
    }
    // The same elements under another shape; needs a contiguous view, or the first dimension kept.
    Tensor reshape(std::initializer_list<int64_t> shape) const {
        Tensor view(data_, dtype_, shape);
        FERRY_CHECK(view.count() == count() && (contiguous() || view.shape_[0] == shape_[0]),
                    "reshape {} to {}", describe(), view.describe());
        if (view.shape_[0] == shape_[0]) view.row_stride_ = row_stride_;
        return view;
    }

    std::string describe() const {  // "[4, 128] bf16"
        std::string text = "[";
        for (int i = 0; i < rank_; ++i) text += fmt::format("{}{}", i ? ", " : "", shape_[i]);
        return text + "] " + std::string(to_string(dtype_));
    }

  private:
    void* data_ = nullptr;
    DType dtype_ = DType::f32;
    int rank_ = 0;
    std::array<int64_t, kMaxRank> shape_{};
    int64_t row_stride_ = 0;
};

// check_shape(x, "x", DType::f32, {tokens, dim}): both shapes are in the message when it fails.
inline void check_shape(const Tensor& tensor, const char* name, DType dtype,
                        std::initializer_list<int64_t> shape) {
    const Tensor expected(nullptr, dtype, shape);
    bool same = tensor.dtype() == dtype && tensor.rank() == expected.rank();
    for (int i = 0; same && i < expected.rank(); ++i) same = tensor.dim(i) == expected.dim(i);
    FERRY_CHECK(same, "{} is {}, expected {}", name, tensor.describe(), expected.describe());
}

}  // namespace ferry
