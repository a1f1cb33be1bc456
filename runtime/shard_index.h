// The datasets of a shard as one text in it, so that opening a checkpoint does not ask HDF5 for
// each of them: some 50 us a dataset, and several small reads, which a parallel file system makes
// the most of it. A line is "NAME DTYPE OFFSET FIRST_ROW XXH3 EXTENT...", the last one "xxh3 HEX"
// of all before it. HDF5 readers need it not.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/hdf5_file.h"

namespace ferry {

std::string to_shard_index(std::span<const Hdf5Dataset> datasets);
// Lines and the one that ends them; back again, where Error(checkpoint) names `what` of `where`
// that was damaged.
std::string with_checksum(const std::string& lines);
std::string without_checksum(const std::string& text, const std::string& where,
                             std::string_view what);

// The same datasets. Throws Error(checkpoint) naming `where` when the text is none, or not what
// was written.
std::vector<Hdf5Dataset> parse_shard_index(const std::string& text, const std::string& where);

}  // namespace ferry
