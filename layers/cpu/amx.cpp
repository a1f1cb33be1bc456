#include "layers/cpu/amx.h"

#include <algorithm>
#include <atomic>

#include "layers/cpu/panel.h"

#if FERRY_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ferry {
#if FERRY_HAS_AMX
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kStepBytes = 64;  // of a panel's pair of k: a row of a tile
static_assert(kStepBytes == 4 * kPanelColumns && kAmxRows == 2 * kTileRows);

// What the tiles hold: 0 to 3 sums, of the upper rows by either panel, then of the lower rows; 4
// and 5 rows, 6 and 7 panels.
constexpr int kSums = 0, kX = 4, kW = 6;

struct alignas(64) TileShapes {  // as ldtilecfg reads it
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t num_rows, int64_t bytes) {
        rows[tile] = static_cast<uint8_t>(num_rows);
        row_bytes[tile] = static_cast<uint16_t>(num_rows > 0 ? bytes : 0);
    }
};

// Two heights of rows, and pairs of k. Clears all tiles.
void shape_tiles(int64_t upper, int64_t lower, int64_t pairs) {
    TileShapes shapes;
    for (int panel = 0; panel < kAmxPanels; ++panel) {
        shapes.set(kSums + panel, upper, kStepBytes);
        shapes.set(kSums + 2 + panel, lower, kStepBytes);
        shapes.set(kW + panel, pairs, kStepBytes);
    }
    shapes.set(kX, upper, 4 * pairs);
    shapes.set(kX + 1, lower, 4 * pairs);
    asm volatile("ldtilecfg (%0)" : : "r"(&shapes) : "memory");
}

template <int kTile>
void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile) : "memory");
}
template <int kTile>
void load_tile(const void* at, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(at), "r"(stride_bytes), "i"(kTile)
                 : "memory");
}
template <int kTile>
void store_tile(void* at, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(at), "r"(stride_bytes), "i"(kTile)
                 : "memory");
}
template <int kSum, int kRows, int kPanel>
void add_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSum), "i"(kRows), "i"(kPanel)
                 : "memory");
}

// Up to 32 rows by one or two panels, whole columns; the tiles have their shapes.
template <bool kLower, bool kSecond>
void multiply_rows(const AmxBlock& b, const std::byte* x, bool resume, float* y, int64_t y_stride,
                   const std::byte* next, int64_t next_lines) {
    const int64_t y_bytes = y_stride * static_cast<int64_t>(sizeof(float));
    float* const below = y + kTileRows * y_stride;
    const auto for_sums = [&](auto&& each) {
        each.template operator()<kSums>(y);
        if constexpr (kSecond) each.template operator()<kSums + 1>(y + kPanelColumns);
        if constexpr (kLower) each.template operator()<kSums + 2>(below);
        if constexpr (kLower && kSecond) each.template operator()<kSums + 3>(below + kPanelColumns);
    };
    if (resume)
        for_sums([&]<int kTile>(float* at) { load_tile<kTile>(at, y_bytes); });
    else
        for_sums([&]<int kTile>(float*) { clear_tile<kTile>(); });
    const std::byte* w = b.panels;
    const int64_t steps = std::max<int64_t>(1, b.num_k / kAmxSteps);
    for (int64_t step = 0; step < steps; ++step) {
        for (int64_t line = 0; line < next_lines; ++line, next += kStepBytes)
            for (int64_t panel = 0; panel < (kSecond ? 2 : 1); ++panel)
                __builtin_prefetch(next + panel * b.next_stride, 0, 2);
        load_tile<kX>(x, b.x_stride);
        load_tile<kW>(w, kStepBytes);
        add_products<kSums, kX, kW>();
        if constexpr (kSecond) {
            load_tile<kW + 1>(w + b.panel_stride, kStepBytes);
            add_products<kSums + 1, kX, kW + 1>();
        }
        if constexpr (kLower) {
            load_tile<kX + 1>(x + kTileRows * b.x_stride, b.x_stride);
            add_products<kSums + 2, kX + 1, kW>();
            if constexpr (kSecond) add_products<kSums + 3, kX + 1, kW + 1>();
        }
        x += kAmxSteps * 2;
        w += kAmxSteps / 2 * kStepBytes;
    }
    for_sums([&]<int kTile>(float* at) { store_tile<kTile>(at, y_bytes); });
}

bool is_permitted() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kBf16) == 0 ||
        (edx & kTiles) == 0)
        return false;
    // The kernel gives the registers to processes that ask (arch_prctl, ARCH_REQ_XCOMP_PERM,
    // XFEATURE_XTILEDATA), once for all threads.
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

std::atomic<bool> pretended{false};

}  // namespace

bool has_amx() {
    static const bool permitted = is_permitted();
    return permitted || pretended.load(std::memory_order_relaxed);
}

bool pretend_amx(bool has) {
    pretended.store(has, std::memory_order_relaxed);
    return true;
}

void multiply_by_amx(const AmxBlock& b) {
    const int64_t pairs = std::min(kAmxSteps, b.num_k) / 2;
    const int64_t row_tiles = (b.num_rows + kAmxRows - 1) / kAmxRows;
    // Lines of the next panels, for each step of each tile of rows.
    const int64_t next_lines = b.next == nullptr ? 0 : (kAmxSteps / 2 + row_tiles - 1) / row_tiles;
    int64_t shaped_for = 0;
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
        const int64_t row = tile * kAmxRows, rows = std::min(kAmxRows, b.num_rows - row);
        if (rows != shaped_for) {
            const int64_t upper = std::min(rows, kTileRows);
            shape_tiles(upper, rows - upper, pairs);
            shaped_for = rows;
        }
        const std::byte* const x = b.x + row * b.x_stride;
        const std::byte* const next =
            next_lines == 0 ? nullptr
                            : b.next + tile * next_lines * (b.num_k / kAmxSteps) * kStepBytes;
        const auto run = [&](bool resume, float* y, int64_t stride) {
            auto* body = &multiply_rows<false, false>;
            if (rows > kTileRows)
                body = b.num_panels > 1 ? &multiply_rows<true, true> : &multiply_rows<true, false>;
            else if (b.num_panels > 1)
                body = &multiply_rows<false, true>;
            body(b, x, resume, y, stride, next, next_lines);
        };
        float* const y = b.y + row * b.y_stride;
        const int64_t columns = b.num_panels * kPanelColumns;
        if (b.num_columns >= columns) {
            run(b.resume, y, b.y_stride);
            continue;
        }
        alignas(64) float whole[kAmxRows][kAmxPanels * kPanelColumns] = {};
        if (b.resume)
            for (int64_t r = 0; r < rows; ++r)
                std::copy_n(y + r * b.y_stride, b.num_columns, whole[r]);
        run(b.resume, whole[0], kAmxPanels * kPanelColumns);
        for (int64_t r = 0; r < rows; ++r) std::copy_n(whole[r], b.num_columns, y + r * b.y_stride);
    }
}

void release_amx() {
    asm volatile("tilerelease" : : : "memory");
}

#else
bool has_amx() {
    return false;
}
bool pretend_amx(bool /*has*/) {
    return false;
}
void multiply_by_amx(const AmxBlock& /*block*/) {}
void release_amx() {}
#endif

}  // namespace ferry
