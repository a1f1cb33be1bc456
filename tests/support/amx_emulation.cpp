#include "tests/support/amx_emulation.h"

#include "layers/cpu/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

namespace ferry {
namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxRowBytes = 64;

struct Tile {
    int rows = 0, row_bytes = 0;
    uint8_t data[kMaxRows][kMaxRowBytes];
};
struct Tiles {
    bool shaped = false;
    Tile tile[kTiles];
};

thread_local Tiles tiles;
std::atomic<int64_t> products{0}, faults{0};
struct sigaction before;

// Values below the normal numbers are zeros, going in and coming out.
float flushed(float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
float bf16_at(const uint8_t* at) {
    uint16_t code;
    std::memcpy(&code, at, 2);
    return flushed(std::bit_cast<float>(uint32_t{code} << 16));
}
float f32_at(const uint8_t* at) {
    float value;
    std::memcpy(&value, at, 4);
    return flushed(value);
}

bool multiply(Tile& c, const Tile& a, const Tile& b) {
    if (c.rows == 0 || c.rows != a.rows || a.row_bytes % 4 != 0 || a.row_bytes / 4 != b.rows ||
        b.row_bytes != c.row_bytes || c.row_bytes % 4 != 0)
        return false;
    for (int m = 0; m < c.rows; ++m)
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            float sums[2] = {};
            for (int k = 0; k < b.rows; ++k)
                for (int i = 0; i < 2; ++i)
                    sums[i] = flushed(std::fma(bf16_at(&a.data[m][4 * k + 2 * i]),
                                               bf16_at(&b.data[k][4 * n + 2 * i]), sums[i]));
            uint8_t* const to = &c.data[m][4 * n];
            const float sum = flushed(f32_at(to) + flushed(sums[0] + sums[1]));
            std::memcpy(to, &sum, 4);
        }
    return true;
}

bool load_shapes(const uint8_t* at) {
    if (at[0] != 1 || at[1] != 0) return false;
    for (int i = 2; i < 16; ++i)
        if (at[i] != 0) return false;
    for (int i = 0; i < 16; ++i) {
        uint16_t row_bytes;
        std::memcpy(&row_bytes, at + 16 + 2 * i, 2);
        const int rows = at[48 + i];
        if (rows > kMaxRows || row_bytes > kMaxRowBytes || (rows == 0) != (row_bytes == 0) ||
            (i >= kTiles && rows != 0))
            return false;
        if (i < kTiles) tiles.tile[i] = {.rows = rows, .row_bytes = row_bytes, .data = {}};
    }
    tiles.shaped = true;
    return true;
}

int64_t general_register(const ucontext_t& context, int number) {
    constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                              REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15};
    return context.uc_mcontext.gregs[kOrder[number]];
}

// An instruction at `code`: VEX.128, map 0F38, W0. False if it is none of AMX; `length` says where
// the next one is.
bool execute(ucontext_t& context, const uint8_t* code, int& length) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;
    const bool r = (code[1] & 0x80) == 0, x = (code[1] & 0x40) == 0, b = (code[1] & 0x20) == 0;
    const int prefix = code[2] & 3, third = ~(code[2] >> 3) & 15, opcode = code[3];
    const int mode = code[4] >> 6, reg = (code[4] >> 3 & 7) + (r ? 8 : 0), rm = code[4] & 7;
    constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;

    uint8_t* address = nullptr;
    int64_t stride = 0;
    length = 5;
    if (mode != 3) {  // memory
        int base = rm + (b ? 8 : 0);
        if (rm == 4) {
            const int sib = code[length++], index = (sib >> 3 & 7) + (x ? 8 : 0);
            if (index != 4) stride = general_register(context, index) << (sib >> 6);
            base = (sib & 7) + (b ? 8 : 0);
        }
        if (mode == 0 && base % 8 == 5) return false;  // no base: not written by anyone here
        int64_t offset = 0;
        if (mode == 1) {
            offset = static_cast<int8_t>(code[length++]);
        } else if (mode == 2) {
            int32_t wide;
            std::memcpy(&wide, code + length, 4);
            offset = wide;
            length += 4;
        }
        address = reinterpret_cast<uint8_t*>(general_register(context, base) + offset);
    }

    const auto fault_unless = [](bool is_right) {
        if (!is_right) ++faults;
        return true;
    };
    if (opcode == 0x49 && prefix == kNone && mode != 3) return fault_unless(load_shapes(address));
    if (opcode == 0x49 && prefix == kNone && code[4] == 0xc0) {
        tiles = {};
        return true;
    }
    if (reg >= kTiles) return false;
    Tile& tile = tiles.tile[reg];
    if (opcode == 0x49 && prefix == kF2 && mode == 3) {
        std::memset(tile.data, 0, sizeof(tile.data));
        return fault_unless(tile.rows > 0);
    }
    if (opcode == 0x4b && mode != 3 && rm == 4 && prefix != kNone) {
        for (int row = 0; row < tile.rows; ++row, address += stride) {
            if (prefix == kF3)
                std::memcpy(address, tile.data[row], static_cast<size_t>(tile.row_bytes));
            else
                std::memcpy(tile.data[row], address, static_cast<size_t>(tile.row_bytes));
        }
        return fault_unless(tile.rows > 0 && (prefix == kF3 || prefix == kF2 || prefix == k66));
    }
    if (opcode == 0x5c && prefix == kF3 && mode == 3) {
        if (third >= kTiles || reg == rm || reg == third || rm == third || b)
            return fault_unless(false);
        ++products;
        return fault_unless(multiply(tile, tiles.tile[rm], tiles.tile[third]));
    }
    return false;
}

void on_illegal(int signal, siginfo_t* info, void* argument) {
    auto& context = *static_cast<ucontext_t*>(argument);
    auto& at = context.uc_mcontext.gregs[REG_RIP];
    int length = 0;
    if (execute(context, reinterpret_cast<const uint8_t*>(at), length)) {
        at += length;
        return;
    }
    if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, argument);
    ::signal(SIGILL, SIG_DFL);  // ends in the same instruction
}

}  // namespace

AmxEmulation::AmxEmulation() : is_built_(pretend_amx(true)) {
    struct sigaction action {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before);
}
AmxEmulation::~AmxEmulation() {
    pretend_amx(false);
    sigaction(SIGILL, &before, nullptr);
}
int64_t AmxEmulation::num_products() {
    return products;
}
int64_t AmxEmulation::num_faults() {
    return faults;
}
bool AmxEmulation::has_shapes() {
    return tiles.shaped;
}

}  // namespace ferry

#else
namespace ferry {

AmxEmulation::AmxEmulation() : is_built_(false) {}
AmxEmulation::~AmxEmulation() = default;
int64_t AmxEmulation::num_products() {
    return 0;
}
int64_t AmxEmulation::num_faults() {
    return 0;
}
bool AmxEmulation::has_shapes() {
    return false;
}

}  // namespace ferry
#endif
