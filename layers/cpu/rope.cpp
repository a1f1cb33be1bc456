// Pairs lie in vector lanes: (a, b) becomes (a cos - b sin, a sin + b cos), every product rounded
// before the sum.
#include <algorithm>

#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/rope.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// One pair, where no vector of them is left.
HWY_INLINE void rotate_pair(float& a, float& b, float cos, float sin) {
    const float first = a * cos - b * sin, second = a * sin + b * cos;
    a = first;
    b = second;
}

// Rotates `num_heads` vectors of r values, `head_stride` apart. angles: cos and sin interleaved.
void rotate_heads(float* x, int64_t num_heads, int64_t head_stride, int64_t r, bool interleave,
                  const float* HWY_RESTRICT angles) {
    const Floats d;
    const int64_t pairs = r / 2;
    for (int64_t i = 0; i + kLanes <= pairs; i += kLanes) {
        FloatVector cos, sin, a, b;
        hn::LoadInterleaved2(d, angles + 2 * i, cos, sin);
        for (int64_t head = 0; head < num_heads; ++head) {
            float* v = x + head * head_stride;
            if (interleave) {
                hn::LoadInterleaved2(d, v + 2 * i, a, b);
            } else {
                a = hn::LoadU(d, v + i);
                b = hn::LoadU(d, v + pairs + i);
            }
            const FloatVector first = hn::Sub(hn::Mul(a, cos), hn::Mul(b, sin));
            const FloatVector second = hn::Add(hn::Mul(a, sin), hn::Mul(b, cos));
            if (interleave) {
                hn::StoreInterleaved2(first, second, d, v + 2 * i);
            } else {
                hn::StoreU(first, d, v + i);
                hn::StoreU(second, d, v + pairs + i);
            }
        }
    }
    for (int64_t i = pairs / kLanes * kLanes; i < pairs; ++i)
        for (int64_t head = 0; head < num_heads; ++head) {
            float* v = x + head * head_stride;
            rotate_pair(interleave ? v[2 * i] : v[i], interleave ? v[2 * i + 1] : v[pairs + i],
                        angles[2 * i], angles[2 * i + 1]);
        }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(rotate_heads);

}  // namespace

void CpuKernels::rope(const Tensor& x, std::span<const int32_t> positions, const Tensor& table,
                      bool interleave) {
    constexpr int64_t kRowsAtOnce = 16;
    const int64_t rows = x.rows(), heads = x.dim(1), head_dim = x.dim(2), r = table.dim(1);
    check_shape(x, "x", DType::f32, {static_cast<int64_t>(positions.size()), heads, head_dim});
    check_shape(table, "table", DType::f32, {table.rows(), r});
    FERRY_CHECK(r % 2 == 0 && r <= head_dim, "{} rotated columns of {}", r, head_dim);
    const auto rotate = &HWY_DYNAMIC_DISPATCH(rotate_heads);
    threads_.parallel_for(ceil_div(rows, kRowsAtOnce), [&](int64_t block, int) {
        const int64_t end = std::min(rows, (block + 1) * kRowsAtOnce);
        for (int64_t row = block * kRowsAtOnce; row < end; ++row)
            rotate(x.row<float>(row) + head_dim - r, heads, head_dim, r, interleave,
                   table.row<float>(positions[static_cast<size_t>(row)]));
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
