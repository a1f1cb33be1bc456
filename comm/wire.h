// What travels: header, entries, scales and rows of one message. Sizes and offsets come from the
// structs and the one list of sections below; packing, unpacking and printing all use them.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "base/dtype.h"
#include "comm/transport.h"

namespace ferry {

constexpr uint32_t kWireMagic = 0x46455231;  // "FER1": another number for another format
constexpr int64_t kWireScaleBlock = 128;     // values per fp8 scale

enum WireFlags : uint32_t {
    kWireReply = 1,
    kWireBodyFollows = 2,  // rows come in a second message of the size that this header implies
    kWireClosed = 4,       // the last message of its sender
    kWireOnBoard = 8,      // rows lie on the sender's board (Transport::board), not in the message
};

struct MessageHeader {
    uint32_t magic = kWireMagic;
    uint32_t flags = 0;
    int32_t layer = 0;
    int32_t micro_batch = 0;
    int32_t num_rows = 0;
    int32_t num_entries = 0;
    uint32_t agree_any = 0;
    uint32_t agree_max = 0;
    uint32_t sequence = 0;  // exchanges of this micro-batch so far
};

// "Row `row` of this message goes to slot `slot`, for weight slot `k` of its token."
struct WireEntry {
    int32_t row = 0;
    uint16_t slot = 0;
    uint16_t k = 0;
    float weight = 0;
};
static_assert(std::is_trivially_copyable_v<MessageHeader> && sizeof(MessageHeader) == 36);
static_assert(std::is_trivially_copyable_v<WireEntry> && sizeof(WireEntry) == 12);

// Bytes between rows, and f32 scales per row (0 unless fp8).
constexpr int64_t wire_row_bytes(DType dtype, int64_t dim) {
    return static_cast<int64_t>(round_up_message(static_cast<size_t>(dim * size_bytes(dtype))));
}
constexpr int64_t wire_row_scales(DType dtype, int64_t dim) {
    return dtype == DType::fp8_e4m3 ? (dim + kWireScaleBlock - 1) / kWireScaleBlock : 0;
}

// Sections in order; each starts on a 64-byte boundary. A message whose rows lie on a board has
// their places there (i32 each), others have scales and rows.
enum class WireSection : uint8_t { header, entries, places, scales, rows, end };
constexpr std::array<std::string_view, 6> kWireSectionNames{"header", "entries", "places",
                                                            "scales", "rows",    "end"};
enum class WireRowsLie : uint8_t { in_message, on_board };

struct WireLayout {
    std::array<size_t, kWireSectionNames.size()> offset{};  // by section; `end` is the size

    constexpr size_t operator[](WireSection section) const {
        return offset[static_cast<size_t>(section)];
    }
    constexpr size_t size_bytes() const { return (*this)[WireSection::end]; }
};

constexpr WireLayout wire_layout(DType dtype, int64_t dim, int64_t num_rows, int64_t num_entries,
                                 WireRowsLie rows_lie = WireRowsLie::in_message) {
    const int64_t inside = rows_lie == WireRowsLie::in_message ? num_rows : 0;
    const std::array<int64_t, 5> section_bytes{
        static_cast<int64_t>(sizeof(MessageHeader)),
        num_entries * static_cast<int64_t>(sizeof(WireEntry)),
        (num_rows - inside) * static_cast<int64_t>(sizeof(int32_t)),
        inside * wire_row_scales(dtype, dim) * static_cast<int64_t>(sizeof(float)),
        inside * wire_row_bytes(dtype, dim),
    };
    WireLayout layout;
    size_t offset = 0;
    for (size_t i = 0; i < section_bytes.size(); ++i) {
        layout.offset[i] = offset;
        offset = round_up_message(offset + static_cast<size_t>(section_bytes[i]));
    }
    layout.offset.back() = offset;
    return layout;
}
constexpr size_t kHeaderBytes = round_up_message(sizeof(MessageHeader));

// A message in memory, laid out; a board is one without entries.
struct WireMessage {
    std::byte* base = nullptr;
    WireLayout layout;
    int64_t row_bytes = 0;
    int64_t row_scales = 0;
    std::byte* rows = nullptr;
    float* scale_rows = nullptr;
    int32_t* places = nullptr;  // of its rows on the board; null: rows lie in the message, in order

    WireMessage() = default;
    WireMessage(std::byte* memory, DType dtype, int64_t dim, int64_t num_rows, int64_t num_entries,
                const WireMessage* board = nullptr)
        : base(memory),
          layout(wire_layout(dtype, dim, num_rows, num_entries,
                             board != nullptr ? WireRowsLie::on_board : WireRowsLie::in_message)),
          row_bytes(wire_row_bytes(dtype, dim)),
          row_scales(wire_row_scales(dtype, dim)),
          rows(board != nullptr ? board->rows : section<std::byte>(WireSection::rows)),
          scale_rows(board != nullptr ? board->scale_rows : section<float>(WireSection::scales)),
          places(board != nullptr ? section<int32_t>(WireSection::places) : nullptr) {}

    MessageHeader& header() const { return *reinterpret_cast<MessageHeader*>(base); }
    WireEntry* entries() const { return section<WireEntry>(WireSection::entries); }
    int64_t place(int64_t i) const { return places != nullptr ? places[i] : i; }
    std::byte* row(int64_t i) const { return rows + place(i) * row_bytes; }
    float* scales(int64_t i) const { return scale_rows + place(i) * row_scales; }

  private:
    template <typename T>
    T* section(WireSection which) const {
        return reinterpret_cast<T*>(base + layout[which]);
    }
};

}  // namespace ferry
