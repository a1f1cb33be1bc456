// Safetensors files: a JSON header that names every tensor, then their bytes. The reader trusts
// nothing in them.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "runtime/input_file.h"

namespace ferry {

struct SafeTensor {
    std::string name;
    std::string stored_dtype;    // as the file writes it: "F32", "BF16", "F8_E4M3", "F16", ...
    std::optional<DType> dtype;  // nothing: a type of the format that Ferry does not compute with
    std::vector<int64_t> shape;
    int64_t offset_bytes = 0;  // in the file
    int64_t size_bytes = 0;
};

// The tensors of a header, by offset. `data_begin` is where the bytes start in the file and
// `data_bytes` how many there are: tensors must cover them exactly, as the format demands. Throws
// Error(checkpoint) naming file (`where`) and tensor.
std::vector<SafeTensor> parse_safetensors_header(std::string_view header, int64_t data_begin,
                                                 int64_t data_bytes, const std::string& where);

class SafetensorsFile {
  public:
    // Opens the file and checks its header against its size.
    explicit SafetensorsFile(const std::string& path);

    const InputFile& file() const { return file_; }
    const std::vector<SafeTensor>& tensors() const { return tensors_; }
    // XXH3 of the header: says whether a file still describes the same tensors.
    uint64_t header_checksum() const { return header_checksum_; }

  private:
    InputFile file_;
    uint64_t header_checksum_ = 0;
    std::vector<SafeTensor> tensors_;
};

// model.safetensors.index.json: tensor name -> file name (a plain name, beside the index).
std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                           const std::string& where);

}  // namespace ferry
