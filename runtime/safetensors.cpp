#include "runtime/safetensors.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "runtime/checksum.h"
#include "runtime/json_text.h"
#include "runtime/stored_tensor.h"

namespace ferry {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 8;

struct StoredType {
    std::string_view name;
    int64_t size_bytes;
    std::optional<DType> dtype;
};
constexpr std::array<StoredType, 15> kStoredTypes{{
    {"F32", 4, DType::f32},
    {"BF16", 2, DType::bf16},
    {"F8_E4M3", 1, DType::fp8_e4m3},
    {"F64", 8, {}},
    {"F16", 2, {}},
    {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},
    {"I64", 8, {}},
    {"U64", 8, {}},
    {"I32", 4, {}},
    {"U32", 4, {}},
    {"I16", 2, {}},
    {"U16", 2, {}},
    {"I8", 1, {}},
    {"U8", 1, {}},
}};
constexpr StoredType kBool{"BOOL", 1, {}};

const StoredType* find_type(std::string_view name) {
    if (name == kBool.name) return &kBool;
    const auto it = std::ranges::find(kStoredTypes, name, &StoredType::name);
    return it == kStoredTypes.end() ? nullptr : &*it;
}

// Reads one entry of the header.
class EntryReader {
  public:
    EntryReader(const std::string& where, const std::string& name) : where_(where), name_(name) {}

    SafeTensor read(const Json& entry, int64_t data_begin, int64_t data_bytes) const {
        if (!entry.is_object()) fail("its entry is not an object");
        SafeTensor tensor{.name = name_, .stored_dtype = {}, .dtype = {}, .shape = {}};
        const Json& type = field(entry, "dtype");
        if (!type.is_string()) fail("dtype is not a string");
        tensor.stored_dtype = type.get<std::string>();
        const StoredType* known = find_type(tensor.stored_dtype);
        if (known == nullptr) fail(fmt::format("unknown dtype {}", in_quotes(tensor.stored_dtype)));
        tensor.dtype = known->dtype;

        tensor.shape = integers(entry, "shape", kMaxRank);
        const std::optional<int64_t> count = checked_count(tensor.shape);
        if (!count) fail("shape is too large");
        const std::vector<int64_t> offsets = integers(entry, "data_offsets", 2);
        if (offsets.size() != 2 || offsets[0] > offsets[1])
            fail("data_offsets are not a begin and an end");
        if (offsets[1] > data_bytes)
            fail(
                fmt::format("ends at byte {} of the {} that follow the header (truncated file, or "
                            "wrong header length?)",
                            offsets[1], data_bytes));
        tensor.size_bytes = offsets[1] - offsets[0];
        tensor.offset_bytes = data_begin + offsets[0];
        if (tensor.size_bytes != *count * known->size_bytes)
            fail(fmt::format("shape {} of {} does not fit its {} bytes",
                             describe_shape(tensor.shape), tensor.stored_dtype, tensor.size_bytes));
        return tensor;
    }

  private:
    [[noreturn]] void fail(const std::string& what) const {
        throw Error(ErrorKind::checkpoint, "{}: tensor {}: {}", where_, in_quotes(name_), what);
    }
    const Json& field(const Json& entry, const char* key) const {
        const auto it = entry.find(key);
        if (it == entry.end()) fail(fmt::format("{} is missing", key));
        return *it;
    }
    std::vector<int64_t> integers(const Json& entry, const char* key, size_t max_num) const {
        const Json& list = field(entry, key);
        if (!list.is_array() || list.size() > max_num)
            fail(fmt::format("{} is not a list of up to {} numbers", key, max_num));
        std::vector<int64_t> values;
        for (const Json& value : list) {
            if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{1} << 59)
                fail(fmt::format("{} holds something that is not a count", key));
            values.push_back(value.get<int64_t>());
        }
        return values;
    }

    const std::string& where_;
    const std::string& name_;
};

// Bytes up to the end of the JSON object that `text` begins with; nothing when it does not end.
std::optional<size_t> object_bytes(std::string_view text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                ++i;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{') {
            ++depth;
        } else if (c == '}' && --depth == 0) {
            return i + 1;
        }
    }
    return std::nullopt;
}

// A header is one JSON object, filled up with spaces: anything else comes of a wrong length.
void check_header_length(std::string_view header, const std::string& where) {
    const std::optional<size_t> used = object_bytes(header);
    if (!used)
        throw Error(ErrorKind::checkpoint,
                    "{}: wrong header length {} (or damaged header): its JSON does not end there",
                    where, header.size());
    if (header.find_first_not_of(" \t\r\n", *used) != std::string_view::npos)
        throw Error(ErrorKind::checkpoint,
                    "{}: wrong header length {} (or damaged header): its JSON ends after {} bytes",
                    where, header.size(), *used);
}

}  // namespace

std::vector<SafeTensor> parse_safetensors_header(std::string_view header, int64_t data_begin,
                                                 int64_t data_bytes, const std::string& where) {
    if (header.empty() || header[0] != '{')
        throw Error(ErrorKind::checkpoint, "{}: header does not begin with '{{'", where);
    check_header_length(header, where);
    std::vector<SafeTensor> tensors;
    const std::string header_name = fmt::format("{}: header of {} bytes", where, header.size());
    const Json rest =
        parse_json(header, header_name, [&](const std::string& name, const Json& entry) {
            if (name == "__metadata__") return true;
            tensors.push_back(EntryReader(where, name).read(entry, data_begin, data_bytes));
            return true;
        });
    if (!rest.is_object())
        throw Error(ErrorKind::checkpoint, "{}: header is not a JSON object", where);

    std::ranges::stable_sort(
        tensors, {}, [](const SafeTensor& t) { return std::pair(t.offset_bytes, t.size_bytes); });
    int64_t end = data_begin;
    std::string before;
    for (const SafeTensor& tensor : tensors) {
        if (tensor.offset_bytes < end)
            throw Error(ErrorKind::checkpoint, "{}: tensor {} overlaps tensor {}", where,
                        in_quotes(tensor.name), in_quotes(before));
        if (tensor.offset_bytes > end)
            throw Error(ErrorKind::checkpoint, "{}: {} bytes before tensor {} belong to no tensor",
                        where, tensor.offset_bytes - end, in_quotes(tensor.name));
        end = tensor.offset_bytes + tensor.size_bytes;
        before = tensor.name;
    }
    if (end != data_begin + data_bytes)
        throw Error(ErrorKind::checkpoint,
                    "{}: {} bytes after the last tensor{} belong to no tensor (wrong header "
                    "length?)",
                    where, data_begin + data_bytes - end,
                    tensors.empty() ? "" : ", " + in_quotes(before) + ",");
    return tensors;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
    std::array<unsigned char, 8> length{};
    if (file_.size_bytes() < 8)
        throw Error(ErrorKind::checkpoint, "{}: truncated: {} bytes hold no safetensors header",
                    path, file_.size_bytes());
    file_.read_at(0, length.size(), length.data());
    uint64_t header_bytes = 0;
    for (size_t i = 0; i < length.size(); ++i) header_bytes |= uint64_t{length[i]} << (8 * i);
    if (header_bytes > kMaxHeaderBytes)
        throw Error(ErrorKind::checkpoint,
                    "{}: wrong header length {} (not a safetensors file? at most {})", path,
                    header_bytes, kMaxHeaderBytes);
    const int64_t data_begin = 8 + static_cast<int64_t>(header_bytes);
    if (data_begin > file_.size_bytes())
        throw Error(ErrorKind::checkpoint,
                    "{}: wrong header length {}, or truncated: the file has {} bytes", path,
                    header_bytes, file_.size_bytes());
    std::string header(header_bytes, '\0');
    file_.read_at(8, header.size(), header.data());
    header_checksum_ = checksum(header.data(), header.size());
    tensors_ = parse_safetensors_header(header, data_begin, file_.size_bytes() - data_begin, path);
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                           const std::string& where) {
    const Json index = parse_json(text, where);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
        throw Error(ErrorKind::checkpoint, "{}: has no weight_map", where);
    std::map<std::string, std::string> files;
    for (const auto& [name, file] : index["weight_map"].items()) {
        const std::string file_name = file.is_string() ? file.get<std::string>() : "";
        if (file_name.empty() || file_name.find('/') != std::string::npos ||
            file_name.find('\0') != std::string::npos || file_name[0] == '.')
            throw Error(ErrorKind::checkpoint, "{}: tensor {} is in no plain file name: {}", where,
                        in_quotes(name), in_quotes(file_name));
        files[name] = file_name;
    }
    if (files.empty()) throw Error(ErrorKind::checkpoint, "{}: weight_map is empty", where);
    return files;
}

}  // namespace ferry
