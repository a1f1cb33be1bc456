// Reads golden data under tests/golden/data: one JSON value per line.
#pragma once
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ferry {

inline std::string golden_path(const std::string& name) {
    return std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/" + name;
}

inline std::vector<nlohmann::json> read_golden_lines(const std::string& name) {
    std::ifstream file(golden_path(name));
    EXPECT_TRUE(file) << "cannot open " << golden_path(name);
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(file, line);) {
        lines.push_back(nlohmann::json::parse(line));
    }
    return lines;
}

}  // namespace ferry
