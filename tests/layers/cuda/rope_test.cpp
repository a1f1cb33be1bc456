#include "tests/support/cuda_matrix.h"

namespace ferry {
namespace {

TEST(CudaRope, HasTheBitsOfTheCpu) {
    const auto cpu = make_cpu_kernels(1);
    const std::vector<int32_t> positions{0, 5, 31, 7};
    for (bool interleave : {true, false})
        for (int64_t r : {2, 10, 64})
            for (int64_t heads : {1, 3, 16})
                for (int64_t rows : {0, 1, 4}) {
                    SCOPED_TRACE(fmt::format("{} rows, {} heads, {} columns, interleave {}", rows,
                                             heads, r, interleave));
                    const int64_t head_dim = r + 8;
                    const Matrix table(32, r, 9);
                    Matrix x(rows, heads * head_dim, 1);
                    const CudaTensor x_device(x), table_device(table);
                    const std::span used(positions.data(), static_cast<size_t>(rows));
                    for (const int64_t first : {int64_t{8}, int64_t{0}}) {
                        cpu->rope(x.view.reshape({rows, heads, head_dim}), first, used, table.view,
                                  interleave);
                        cuda_kernels().rope(x_device.view().reshape({rows, heads, head_dim}), first,
                                            used, table_device, interleave);
                    }
                    expect_same_bits(x_device.values(), x.values);
                }
}

}  // namespace
}  // namespace ferry
