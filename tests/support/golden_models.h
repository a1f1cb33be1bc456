// Golden data of whole models: tests/golden/README.md tells the fields.
#pragma once
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace ferry::testing {

// Where the project's sources are; said again on a machine that they were carried to
// (tests/gpu/run.sh).
inline std::string source_folder() {
    const char* given = std::getenv("FERRY_TEST_SOURCE_DIR");
    return given != nullptr ? given : FERRY_SOURCE_DIR;
}

inline std::string golden_folder(const std::string& name) {
    return source_folder() + "/tests/golden/data/" + name;
}

inline nlohmann::json read_golden_json(const std::string& folder) {
    return nlohmann::json::parse(std::ifstream(folder + "/golden.json"));
}

// Rows of logits, f32 [rows, vocab_size]. Throws when the file is short.
class GoldenRows {
  public:
    GoldenRows(const std::string& path, int64_t vocab_size) : vocab_size_(vocab_size) {
        std::ifstream file(path, std::ios::binary | std::ios::ate);
        if (!file) throw std::runtime_error(path + ": cannot be opened");
        values_.resize(static_cast<size_t>(file.tellg()) / sizeof(float));
        file.seekg(0);
        file.read(reinterpret_cast<char*>(values_.data()),
                  static_cast<std::streamsize>(values_.size() * sizeof(float)));
        if (!file) throw std::runtime_error(path + ": cannot be read");
    }
    std::span<const float> row(int64_t idx) const {
        const size_t begin = static_cast<size_t>(idx * vocab_size_);
        if (begin + static_cast<size_t>(vocab_size_) > values_.size())
            throw std::out_of_range("golden logits row " + std::to_string(idx));
        return {values_.data() + begin, static_cast<size_t>(vocab_size_)};
    }

  private:
    int64_t vocab_size_;
    std::vector<float> values_;
};

// Largest |got - expected|; infinity when something is not a number.
inline double largest_difference(std::span<const float> got, std::span<const float> expected) {
    double largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (!std::isfinite(got[i])) return INFINITY;
        largest = std::max(largest, std::abs(static_cast<double>(got[i]) - expected[i]));
    }
    return largest;
}

}  // namespace ferry::testing
