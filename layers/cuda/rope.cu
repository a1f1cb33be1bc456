// One thread rotates one pair: (a, b) becomes (a cos - b sin, a sin + b cos), every product rounded
// before the sum, as on the CPU.
#include "base/cuda_launch.h"
#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/geometry.h"

namespace ferry {
namespace {

struct Rope {
    float* x;  // first rotated column of head 0
    int64_t row_stride, num_rows, heads, head_dim, pairs;
    const int32_t* positions;
    const float* table;  // [positions, 2 pairs]
    bool interleave;
};

// Threads along x take the pairs of all heads of a row.
__global__ void rope_kernel(Rope rope) {
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= rope.heads * rope.pairs) return;
    const int64_t head = index / rope.pairs, pair = index % rope.pairs;
    const int64_t first = head * rope.head_dim + (rope.interleave ? 2 * pair : pair);
    const int64_t second = first + (rope.interleave ? 1 : rope.pairs);
    for (int64_t row = blockIdx.y; row < rope.num_rows; row += gridDim.y) {
        const float2 angle =
            reinterpret_cast<const float2*>(rope.table)[rope.positions[row] * rope.pairs + pair];
        float* x = rope.x + row * rope.row_stride;
        const float a = x[first], b = x[second];
        x[first] = __fadd_rn(__fmul_rn(a, angle.x), -__fmul_rn(b, angle.y));
        x[second] = __fadd_rn(__fmul_rn(a, angle.y), __fmul_rn(b, angle.x));
    }
}

}  // namespace

void CudaKernels::rope(const Tensor& x, int64_t first_column, std::span<const int32_t> positions,
                       const Tensor& table, bool interleave) {
    const int64_t rows = x.rows(), heads = x.dim(1), head_dim = x.dim(2), r = table.dim(1);
    check_shape(x, "x", DType::f32, {static_cast<int64_t>(positions.size()), heads, head_dim});
    check_shape(table, "table", DType::f32, {table.rows(), r});
    FERRY_CHECK(r % 2 == 0 && first_column + r <= head_dim && table.contiguous(),
                "rotated columns {}+{} of {}", first_column, r, head_dim);
    for (int32_t position : positions)
        FERRY_CHECK(position >= 0 && position < table.rows(), "position {} of {}", position,
                    table.rows());
    if (x.empty() || r == 0) return;
    launch_early(rope_kernel, elementwise_shape(rows, heads * r / 2), stream(),
                 Rope{.x = x.as<float>() + first_column,
                      .row_stride = x.row_stride(),
                      .num_rows = rows,
                      .heads = heads,
                      .head_dim = head_dim,
                      .pairs = r / 2,
                      .positions = step_arrays_.on_device(positions),
                      .table = table.as<float>(),
                      .interleave = interleave});
}

}  // namespace ferry
