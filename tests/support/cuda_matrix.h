// Tests of CUDA kernels: device memory that is filled from the host and read back.
#pragma once
#include <gtest/gtest.h>

#include "base/device_cuda.h"
#include "layers/kernels.h"
#include "tests/support/matrix.h"

namespace ferry {

// One per process: a context and its scratch memory are not made anew for each test.
inline Kernels& cuda_kernels() {
    static Kernels* const kernels = make_cuda_kernels(0).release();  // CUDA ends before statics do
    return *kernels;
}

// A tensor on the GPU, NaN until it is written, or a copy of one on the host.
class CudaTensor {
  public:
    CudaTensor(DType dtype, std::initializer_list<int64_t> shape)
        : memory_(cuda_device(0), dtype, shape) {
        const std::vector<uint8_t> nan(bytes(), 0xff);
        cuda_device(0).copy_from_host(memory_.view().data(), nan.data(), nan.size());
    }
    // Contiguous ones only.
    explicit CudaTensor(const Tensor& host) : CudaTensor(host, shape_of(host)) {}
    explicit CudaTensor(const Matrix& host) : CudaTensor(host.view) {}

    const Tensor& view() const { return memory_.view(); }
    operator const Tensor&() const { return memory_.view(); }

    template <typename T = float>
    std::vector<T> values() const {
        std::vector<T> host(bytes() / sizeof(T));
        cuda_device(0).copy_to_host(host.data(), memory_.view().data(), bytes());
        return host;
    }

  private:
    struct Shape {
        std::array<int64_t, Tensor::kMaxRank> dims{};
        int rank = 0;
    };
    static Shape shape_of(const Tensor& t) {
        FERRY_CHECK(t.contiguous());
        Shape shape{.rank = t.rank()};
        for (int i = 0; i < t.rank(); ++i) shape.dims[static_cast<size_t>(i)] = t.dim(i);
        return shape;
    }
    CudaTensor(const Tensor& host, const Shape& s)
        : memory_(s.rank == 1   ? OwnedTensor(cuda_device(0), host.dtype(), {s.dims[0]})
                  : s.rank == 2 ? OwnedTensor(cuda_device(0), host.dtype(), {s.dims[0], s.dims[1]})
                  : s.rank == 3
                      ? OwnedTensor(cuda_device(0), host.dtype(), {s.dims[0], s.dims[1], s.dims[2]})
                      : OwnedTensor(cuda_device(0), host.dtype(),
                                    {s.dims[0], s.dims[1], s.dims[2], s.dims[3]})) {
        cuda_device(0).copy_from_host(memory_.view().data(), host.data(), bytes());
    }
    size_t bytes() const {
        return static_cast<size_t>(memory_.view().count() * size_bytes(memory_.view().dtype()));
    }

    OwnedTensor memory_;
};

// Every value within `relative` of the size of the expected one, or within `absolute` of it.
inline void expect_close(const std::vector<float>& got, const std::vector<float>& expected,
                         float relative, float absolute = 0) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], expected[i], absolute + relative * std::abs(expected[i])) << "at " << i;
}

inline void expect_same_bits(const std::vector<float>& got, const std::vector<float>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i]))
            << "at " << i << ": " << got[i] << " and " << expected[i];
}

}  // namespace ferry
