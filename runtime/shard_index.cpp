#include "runtime/shard_index.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "runtime/checkpoint_format.h"
#include "runtime/checksum.h"
#include "runtime/stored_tensor.h"

namespace ferry {

using namespace checkpoint_format;

std::string with_checksum(const std::string& lines) {
    return fmt::format("{}xxh3 {:016x}\n", lines, checksum(lines.data(), lines.size()));
}

std::string without_checksum(const std::string& text, const std::string& where,
                             std::string_view what) {
    constexpr size_t kChecksumLine = std::string_view("xxh3 0123456789abcdef\n").size();
    std::string lines = text.substr(0, text.size() - std::min(text.size(), kChecksumLine));
    if (with_checksum(lines) != text)
        throw Error(ErrorKind::checkpoint, "{}: its {} fails its checksum; convert again", where,
                    what);
    return lines;
}

std::string to_shard_index(std::span<const Hdf5Dataset> datasets) {
    std::string text;
    for (const Hdf5Dataset& dataset : datasets)
        text += fmt::format("{} {} {} {} {} {}\n", dataset.name, to_string(dataset.info.dtype),
                            dataset.offset_bytes,
                            std::get<int64_t>(dataset.attributes.at(kFirstRowAttribute)),
                            std::get<std::string>(dataset.attributes.at(kChecksumAttribute)),
                            fmt::join(dataset.info.shape, " "));
    return with_checksum(text);
}

std::vector<Hdf5Dataset> parse_shard_index(const std::string& text, const std::string& where) {
    const std::string tensors = without_checksum(text, where, "index of tensors");
    std::vector<Hdf5Dataset> datasets;
    std::istringstream lines(tensors);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream fields(line);
        Hdf5Dataset dataset;
        std::string dtype, checksum;
        int64_t first_row = 0;
        fields >> dataset.name >> dtype >> dataset.offset_bytes >> first_row >> checksum;
        const bool has_fields = !fields.fail();
        for (int64_t extent; fields >> extent;) dataset.info.shape.push_back(extent);
        const std::optional<DType> known = parse_dtype(dtype);
        const bool is_stored = known == DType::f32 || known == DType::bf16 ||
                               known == DType::fp8_e4m3 || known == DType::int4x2;
        const size_t rank = dataset.info.shape.size();
        if (!has_fields || !fields.eof() || !is_stored || rank < 1 || rank > Tensor::kMaxRank ||
            !checked_count(dataset.info.shape))
            throw Error(ErrorKind::checkpoint, "{}: its index of tensors cannot be read: '{}'",
                        where, line.substr(0, 80));
        dataset.info.dtype = *known;
        dataset.attributes.emplace(kFirstRowAttribute, first_row);
        dataset.attributes.emplace(kChecksumAttribute, std::move(checksum));
        datasets.push_back(std::move(dataset));
    }
    return datasets;
}

}  // namespace ferry
