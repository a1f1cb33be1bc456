#include "layers/cuda/few_rows.h"

#include <fmt/core.h>

namespace ferry {
namespace {

// Warps that a GPU of 132 multiprocessors should have at least to keep enough of the weights on
// their way, and blocks that give each of them one.
constexpr int64_t kEnoughWarps = 1500, kEnoughBlocks = 132;

}  // namespace

FewRowsPlan few_rows_plan(int64_t rows, int64_t out, int64_t in, int64_t max_shared_bytes) {
    const int64_t tiles = (out + kFewRowsOut - 1) / kFewRowsOut;
    const int64_t in_blocks = (in + kFewRowsBlock - 1) / kFewRowsBlock;
    // For the most rows, as the number of warps along `in` is that of any.
    FewRowsPlan plan{.row_tiles = 4, .out_tiles = 1, .in_warps = 4};
    const auto twice_fits = [&] {
        FewRowsPlan twice = plan;
        twice.in_warps *= 2;
        return twice.num_warps() <= kFewRowsMostWarps && twice.shared_bytes(in) <= max_shared_bytes;
    };
    while (tiles * plan.in_warps < kEnoughWarps && plan.in_warps < in_blocks && twice_fits())
        plan.in_warps *= 2;
    plan.row_tiles = rows <= 8 ? 1 : rows <= 16 ? 2 : 4;
    // Two tiles whose warps copy the same rows of x, the second out of L1.
    if (plan.row_tiles > 1 && tiles / 2 >= kEnoughBlocks && twice_fits()) plan.out_tiles = 2;
    return plan;
}

std::string FewRowsPlan::describe() const {
    return fmt::format("own kernel, tiles of {} x {}, {} to a block, {} warps along in",
                       8 * row_tiles, kFewRowsOut, out_tiles, in_warps);
}

}  // namespace ferry
