// Reading a checkpoint's files plainly, to set loading against, and taking them out of the page
// cache before.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ferry {

// Weight files (.h5, .safetensors) of a model's folder, or of the folder of a file, by name. Throws
// Error(checkpoint) when there are none.
std::vector<std::string> weight_files(const std::string& model_path);
int64_t total_file_bytes(const std::vector<std::string>& paths);

// Asks the system to forget cached pages of the files (posix_fadvise; needs no rights) and, where
// pages stay and this process may (root), of the whole node (/proc/sys/vm/drop_caches). Pages that
// somebody has mapped stay, and all of a file system in memory: cached_share() tells. Returns what
// was asked last: "posix_fadvise", "drop_caches".
std::string drop_from_cache(const std::vector<std::string>& paths);
// Files of which no more than this is cached are cold.
constexpr double kColdShare = 0.02;
// Which part of the files is in this node's page cache, 0 ... 1.
double cached_share(const std::vector<std::string>& paths);

// Reads the index-th of `count` equal consecutive parts of all files together, in pieces of some
// megabytes, and returns its bytes.
int64_t read_part(const std::vector<std::string>& paths, int64_t index, int64_t count);

}  // namespace ferry
