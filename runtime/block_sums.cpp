#include "runtime/block_sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "runtime/shard_index.h"
#include "runtime/stored_tensor.h"

namespace ferry {
namespace {

constexpr int64_t kMaxRowsPerBlock = int64_t{1} << 40;

// The next field of a line; false at its end.
bool take_field(std::string_view& line, std::string_view& field) {
    if (line.empty()) return false;
    const size_t end = std::min(line.find(' '), line.size());
    field = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
    return true;
}

template <typename T>
bool to_number(std::string_view text, int base, T& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

BlockLayout::BlockLayout(const TensorInfo& info) : BlockLayout(info, 1) {
    if (info.shape.size() > 1) rows_per_block = rows_at_once(row_bytes);
}

BlockLayout::BlockLayout(const TensorInfo& info, int64_t num_rows_per_block)
    : row_bytes(info.shape.back() * size_bytes(info.dtype)), rows_per_block(num_rows_per_block) {
    const size_t rank = info.shape.size();
    if (rank > 1) matrix_rows = info.shape[rank - 2];
    for (size_t i = 0; i + 2 < rank; ++i) num_matrices *= info.shape[i];
}

Range BlockLayout::rows_of(int64_t block) const {
    const int64_t first = block % blocks_per_matrix() * rows_per_block;
    return {block / blocks_per_matrix() * matrix_rows + first,
            std::min(rows_per_block, matrix_rows - first)};
}

int64_t BlockLayout::block_of(int64_t row) const {
    return row / matrix_rows * blocks_per_matrix() + row % matrix_rows / rows_per_block;
}

void BlockSummer::add(const void* data, size_t num_bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    for (auto left = static_cast<int64_t>(num_bytes); left > 0;) {
        const int64_t block = std::ssize(sums_);
        FERRY_CHECK(block < layout_.num_blocks(), "bytes after the last block");
        const int64_t block_bytes = layout_.rows_of(block).num * layout_.row_bytes;
        const int64_t taken = std::min(left, block_bytes - num_bytes_);
        sum_.add(from, static_cast<size_t>(taken));
        from += taken;
        left -= taken;
        num_bytes_ += taken;
        if (num_bytes_ < block_bytes) continue;
        sums_.push_back(sum_.value());
        sum_ = Checksum();
        num_bytes_ = 0;
    }
}

BlockSums BlockSummer::take() {
    FERRY_CHECK(std::ssize(sums_) == layout_.num_blocks(), "{} of {} blocks", sums_.size(),
                layout_.num_blocks());
    return {layout_.rows_per_block, std::move(sums_)};
}

std::string to_text(const std::map<std::string, BlockSums>& sums) {
    fmt::memory_buffer text;
    for (const auto& [name, blocks] : sums) {
        fmt::format_to(std::back_inserter(text), "{} {}", name, blocks.rows_per_block);
        for (const uint64_t sum : blocks.sums)
            fmt::format_to(std::back_inserter(text), " {:016x}", sum);
        text.push_back('\n');
    }
    return with_checksum(fmt::to_string(text));
}

std::map<std::string, BlockSums> parse_block_sums(const std::string& text,
                                                  const std::string& where) {
    std::map<std::string, BlockSums> all;
    const std::string lines = without_checksum(text, where, "list of block checksums");
    for (std::string_view left = lines; !left.empty();) {
        const size_t end = std::min(left.find('\n'), left.size());
        std::string_view line = left.substr(0, end), name, field;
        left.remove_prefix(std::min(end + 1, left.size()));
        BlockSums blocks;
        bool good = take_field(line, name) && take_field(line, field) &&
                    to_number(field, 10, blocks.rows_per_block) && blocks.rows_per_block >= 1 &&
                    blocks.rows_per_block <= kMaxRowsPerBlock;
        blocks.sums.reserve(line.size() / 17 + 1);
        for (uint64_t sum = 0; good && take_field(line, field); blocks.sums.push_back(sum))
            good = to_number(field, 16, sum);
        if (!good)
            throw Error(ErrorKind::checkpoint,
                        "{}: its list of block checksums cannot be read: '{}'", where,
                        name.substr(0, 80));
        all.emplace(name, std::move(blocks));
    }
    return all;
}

}  // namespace ferry
