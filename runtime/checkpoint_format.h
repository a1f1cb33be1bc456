// Names that the converter writes and the reader looks for.
//
// A checkpoint is a folder:
//   model.h5           attributes: format, fingerprint, shards ("FILE BYTES" lines), the model's
//                      fields (model_description.h); dataset /config_json: the text it came from;
//                      every tensor by name, as a link into its shard, or as a virtual dataset when
//                      several shards hold its experts
//   dense-I-of-N.h5    whole tensors
//   experts-I-of-N.h5  routed experts by range: /layers/3/ffn/experts/w1 [experts here, out, in]
// Datasets of shards have attributes: dtype, xxh3 (of their bytes, 16 hex digits), first_row. A
// shard lists its tensors in its dataset /index too (shard_index.h) and has checksums of their
// blocks in /block_sums (block_sums.h); those without are read as well.
#pragma once
#include <cstdint>

namespace ferry::checkpoint_format {

constexpr int64_t kVersion = 1;
constexpr const char* kMasterFile = "model.h5";
constexpr const char* kVersionAttribute = "ferry_format";
constexpr const char* kFingerprintAttribute = "fingerprint";
constexpr const char* kShardsAttribute = "shards";
constexpr const char* kConfigText = "config_json";
constexpr const char* kIndexText = "index";
constexpr const char* kBlockSumsText = "block_sums";
constexpr const char* kDTypeAttribute = "dtype";
constexpr const char* kChecksumAttribute = "xxh3";
constexpr const char* kFirstRowAttribute = "first_row";

}  // namespace ferry::checkpoint_format
