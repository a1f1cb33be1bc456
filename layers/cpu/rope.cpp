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

// Pairs of a head in two vectors: those from pair i on, of r / 2 in all.
template <bool kInterleave>
HWY_INLINE void rotate(float* v, int64_t pairs, int64_t i, FloatVector cos, FloatVector sin) {
    const Floats d;
    FloatVector a, b;
    if constexpr (kInterleave) {
        hn::LoadInterleaved2(d, v + 2 * i, a, b);
    } else {
        a = hn::LoadU(d, v + i);
        b = hn::LoadU(d, v + pairs + i);
    }
    const FloatVector first = hn::Sub(hn::Mul(a, cos), hn::Mul(b, sin));
    const FloatVector second = hn::Add(hn::Mul(a, sin), hn::Mul(b, cos));
    if constexpr (kInterleave) {
        hn::StoreInterleaved2(first, second, d, v + 2 * i);
    } else {
        hn::StoreU(first, d, v + i);
        hn::StoreU(second, d, v + pairs + i);
    }
}

// Rotates `num_heads` vectors of r values, `head_stride` apart. angles: cos and sin interleaved.
template <bool kInterleave>
void rotate_heads(float* x, int64_t num_heads, int64_t head_stride, int64_t r,
                  const float* HWY_RESTRICT angles) {
    const Floats d;
    const int64_t pairs = r / 2;
    FloatVector cos, sin;
    int64_t i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
        hn::LoadInterleaved2(d, angles + 2 * i, cos, sin);
        for (int64_t head = 0; head < num_heads; ++head)
            rotate<kInterleave>(x + head * head_stride, pairs, i, cos, sin);
    }
    if (i == pairs) return;
    // The rest goes through a buffer: compilers make fused operations of this arithmetic on
    // scalars, even where told not to.
    const int64_t left = pairs - i;
    float buffer[2 * kLanes] = {};
    std::copy_n(angles + 2 * i, 2 * left, buffer);
    hn::LoadInterleaved2(d, buffer, cos, sin);
    for (int64_t head = 0; head < num_heads; ++head) {
        float* v = x + head * head_stride;
        float* first = kInterleave ? v + 2 * i : v + i;
        float* second = kInterleave ? first + left : v + pairs + i;
        float* buffered_second = kInterleave ? buffer + left : buffer + kLanes;
        std::copy_n(first, left, buffer);
        std::copy_n(second, left, buffered_second);
        rotate<kInterleave>(buffer, kLanes, 0, cos, sin);
        std::copy_n(buffer, left, first);
        std::copy_n(buffered_second, left, second);
    }
}

void rotate_interleaved(float* x, int64_t num_heads, int64_t head_stride, int64_t r,
                        const float* angles) {
    rotate_heads<true>(x, num_heads, head_stride, r, angles);
}

void rotate_halves(float* x, int64_t num_heads, int64_t head_stride, int64_t r,
                   const float* angles) {
    rotate_heads<false>(x, num_heads, head_stride, r, angles);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(rotate_interleaved);
HWY_EXPORT(rotate_halves);

}  // namespace

void CpuKernels::rope(const Tensor& x, int64_t first_column, std::span<const int32_t> positions,
                      const Tensor& table, bool interleave) {
    constexpr int64_t kRowsAtOnce = 16;
    const int64_t rows = x.rows(), heads = x.dim(1), head_dim = x.dim(2), r = table.dim(1);
    check_shape(x, "x", DType::f32, {static_cast<int64_t>(positions.size()), heads, head_dim});
    check_shape(table, "table", DType::f32, {table.rows(), r});
    FERRY_CHECK(r % 2 == 0 && first_column + r <= head_dim, "rotated columns {}+{} of {}",
                first_column, r, head_dim);
    const auto rotate = interleave ? &HWY_DYNAMIC_DISPATCH(rotate_interleaved)
                                   : &HWY_DYNAMIC_DISPATCH(rotate_halves);
    threads_.parallel_for(ceil_div(rows, kRowsAtOnce), [&](int64_t block, int) {
        const int64_t end = std::min(rows, (block + 1) * kRowsAtOnce);
        for (int64_t row = block * kRowsAtOnce; row < end; ++row)
            rotate(x.row<float>(row) + first_column, heads, head_dim, r,
                   table.row<float>(positions[static_cast<size_t>(row)]));
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
