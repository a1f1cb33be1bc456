#include "layers/cpu/read_loop.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/read_loop.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

uint64_t read_piece(const std::byte* data, size_t size_bytes) {
    const hn::ScalableTag<uint64_t> d;
    constexpr int kAtOnce = 4;
    const size_t step = hn::Lanes(d) * sizeof(uint64_t);
    decltype(hn::Zero(d)) sums[kAtOnce];
    for (int j = 0; j < kAtOnce; ++j) sums[j] = hn::Zero(d);
    for (size_t i = 0; i + kAtOnce * step <= size_bytes; i += kAtOnce * step)
        for (size_t j = 0; j < kAtOnce; ++j)
            sums[j] = hn::Xor(sums[j],
                              hn::LoadU(d, reinterpret_cast<const uint64_t*>(data + i + j * step)));
    for (int j = 1; j < kAtOnce; ++j) sums[0] = hn::Xor(sums[0], sums[j]);
    return hn::GetLane(hn::SumOfLanes(d, sums[0]));
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {

HWY_EXPORT(read_piece);

void read_all(ThreadPool& threads, const void* data, size_t size_bytes) {
    constexpr size_t kPiece = size_t{1} << 20;
    threads.parallel_for(
        static_cast<int64_t>((size_bytes + kPiece - 1) / kPiece), [&](int64_t piece, int) {
            const size_t begin = static_cast<size_t>(piece) * kPiece;
            volatile uint64_t sink = HWY_DYNAMIC_DISPATCH(read_piece)(
                static_cast<const std::byte*>(data) + begin, std::min(kPiece, size_bytes - begin));
            static_cast<void>(sink);
        });
}

}  // namespace ferry
#endif  // HWY_ONCE
