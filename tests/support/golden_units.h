// Golden data of single functions: tests/golden/data/units/NAME.safetensors and NAME.json
// (tests/golden/README.md).
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ferry {

class GoldenUnits {
  public:
    explicit GoldenUnits(const std::string& name) {
        const std::string path = FERRY_SOURCE_DIR "/tests/golden/data/units/" + name;
        std::ifstream(path + ".json") >> cases_;
        std::ifstream file(path + ".safetensors", std::ios::binary);
        bytes_.assign(std::istreambuf_iterator<char>(file), {});
        uint64_t header_bytes = 0;
        std::memcpy(&header_bytes, bytes_.data(), sizeof(header_bytes));
        data_begin_ = sizeof(header_bytes) + header_bytes;
        header_ = nlohmann::json::parse(bytes_.data() + sizeof(header_bytes),
                                        bytes_.data() + data_begin_);
    }

    const nlohmann::json& cases() const { return cases_; }
    bool has(const std::string& tensor) const { return header_.contains(tensor); }
    std::vector<int64_t> shape(const std::string& tensor) const {
        return header_.at(tensor).at("shape").get<std::vector<int64_t>>();
    }
    template <typename T>
    std::vector<T> values(const std::string& tensor) const {
        const auto range = header_.at(tensor).at("data_offsets").get<std::vector<size_t>>();
        std::vector<T> values((range[1] - range[0]) / sizeof(T));
        std::memcpy(values.data(), bytes_.data() + data_begin_ + range[0], range[1] - range[0]);
        return values;
    }

  private:
    nlohmann::json cases_, header_;
    std::vector<char> bytes_;
    size_t data_begin_ = 0;
};

}  // namespace ferry
