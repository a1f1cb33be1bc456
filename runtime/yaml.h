// YAML as a plain tree that knows where each value stands. A safe subset: no aliases, tags, several
// documents, duplicate keys, and bounded depth and size.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace ferry {

struct YamlValue {
    enum class Kind { null, scalar, sequence, mapping };
    struct Entry;

    Kind kind = Kind::null;
    bool quoted = false;  // a scalar in quotes (or a block) is a string, whatever it looks like
    std::string text;     // of a scalar
    std::vector<YamlValue> items;  // of a sequence
    std::vector<Entry> entries;    // of a mapping, in order of the file
    int line = 0;                  // from 1; 0: not from a file
    int column = 0;                // from 1
};

struct YamlValue::Entry {
    std::string key;
    int line = 0;  // of the key
    YamlValue value;
};

constexpr size_t kMaxYamlBytes = 1 << 18;
constexpr int kMaxYamlDepth = 16;

// The one document of a text; null for an empty one. `name` stands for the file in errors.
// Throws Error(kind) "NAME:LINE:COLUMN: ...".
YamlValue parse_yaml(std::string_view text, const std::string& name,
                     ErrorKind kind = ErrorKind::usage);

}  // namespace ferry
