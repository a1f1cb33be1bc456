#include "runtime/safetensors.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_hf_model.h"

namespace ferry {
namespace {

using testing::safetensors_bytes;
using testing::TempDir;
using testing::write_file;

std::vector<SafeTensor> parse(const std::string& header, int64_t data_bytes) {
    return parse_safetensors_header(header, 100, data_bytes, "f.safetensors");
}

void refused(const std::string& header, int64_t data_bytes, const std::string& part) {
    EXPECT_ERROR(parse(header, data_bytes), ErrorKind::checkpoint, "f.safetensors", part);
}

TEST(SafetensorsHeader, TensorsByOffset) {
    const auto tensors = parse(
        R"({"__metadata__": {"format": "pt"},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "h": {"dtype": "F16", "shape": [], "data_offsets": [14, 16]}}   )",
        16);
    ASSERT_EQ(tensors.size(), 3u);
    EXPECT_EQ(tensors[0].name, "a");
    EXPECT_EQ(tensors[0].dtype, DType::f32);
    EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 1}));
    EXPECT_EQ(tensors[0].offset_bytes, 100);
    EXPECT_EQ(tensors[0].size_bytes, 8);
    EXPECT_EQ(tensors[1].name, "b");
    EXPECT_EQ(tensors[1].dtype, DType::bf16);
    EXPECT_EQ(tensors[1].offset_bytes, 108);
    EXPECT_EQ(tensors[2].dtype, std::nullopt);  // a type of the format, but not of Ferry
    EXPECT_EQ(tensors[2].stored_dtype, "F16");
}

TEST(SafetensorsHeader, RefusesWhatIsNoHeader) {
    refused("", 0, "does not begin with '{'");
    refused("[]", 0, "does not begin with '{'");
    refused("{\"a\" 1}", 0, "not valid JSON");
    refused("{\"a\": 3}", 0, "tensor \"a\": its entry is not an object");
    refused("{\"a\": {\"shape\": [1], \"data_offsets\": [0, 4]}}", 4, "dtype is missing");
    refused("{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 4]}}", 4, "shape is missing");
    refused("{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", 4, "data_offsets is missing");
    refused("{\"\": 3}", 0, "its entry is not an object");
}

TEST(SafetensorsHeader, NamesAWrongLength) {
    const std::string whole =
        R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "\"}": {"dtype": "U8",)"
        R"( "shape": [0], "data_offsets": [4, 4]}})";
    EXPECT_EQ(parse(whole + "  \n", 4).size(), 2u);
    for (size_t length = 1; length < whole.size(); ++length)
        refused(whole.substr(0, length), 4, "wrong header length " + std::to_string(length));
    refused(whole + "x", 3, "its JSON ends after " + std::to_string(whole.size()) + " bytes");
    refused(whole + std::string(1, '\0'), 3, "wrong header length");
    // Only the padding was cut: the tensors no longer reach the end.
    refused(whole, 5, "wrong header length?");
    refused(whole + "    ", 0, "tensor \"a\": ends at byte 4 of the 0");
}

TEST(SafetensorsHeader, RefusesWrongEntries) {
    const auto entry = [](const std::string& dtype, const std::string& shape,
                          const std::string& offsets) {
        return "{\"model.x\": {\"dtype\": " + dtype + ", \"shape\": " + shape +
               ", \"data_offsets\": " + offsets + "}}";
    };
    refused(entry("\"F4\"", "[1]", "[0, 4]"), 4, "tensor \"model.x\": unknown dtype \"F4\"");
    refused(entry("7", "[1]", "[0, 4]"), 4, "dtype is not a string");
    refused(entry("\"F32\"", "[2]", "[0, 4]"), 4, "shape [2] of F32 does not fit its 4 bytes");
    refused(entry("\"F32\"", "[-1]", "[0, 4]"), 4, "shape holds something that is not a count");
    refused(entry("\"F32\"", "[1.5]", "[0, 4]"), 4, "shape holds something");
    refused(entry("\"F32\"", "[4294967296, 4294967296]", "[0, 4]"), 4, "shape is too large");
    refused(entry("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0, 4]"), 4, "shape is not a list of up to 8");
    refused(entry("\"F32\"", "[1]", "[4, 0]"), 4, "not a begin and an end");
    refused(entry("\"F32\"", "[1]", "[0]"), 4, "not a begin and an end");
    refused(entry("\"F32\"", "[2]", "[0, 8]"), 4, "ends at byte 8 of the 4 that follow");
    refused(entry("\"F32\"", "[1]", "[18446744073709551615, 4]"), 4, "data_offsets holds");
}

TEST(SafetensorsHeader, TensorsCoverTheFileExactly) {
    const auto two = [](const std::string& first, const std::string& second) {
        return "{\"a\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": " + first +
               "}, \"b\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": " + second + "}}";
    };
    EXPECT_EQ(parse(two("[4, 8]", "[0, 4]"), 8).size(), 2u);
    refused(two("[0, 4]", "[2, 6]"), 8, "tensor \"b\" overlaps tensor \"a\"");
    refused(two("[0, 4]", "[0, 4]"), 8, "overlaps");
    refused(two("[0, 4]", "[5, 9]"), 9, "1 bytes before tensor \"b\" belong to no tensor");
    refused(two("[0, 4]", "[4, 8]"), 9, "1 bytes after the last tensor, \"b\",");
    EXPECT_TRUE(parse("{}", 0).empty());
}

TEST(SafetensorsHeader, RefusesDuplicates) {
    refused(R"({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
                "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})",
            0, "\"a\" is there twice");
    refused(R"({"a": {"dtype": "U8", "dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})", 0,
            "\"dtype\" is there twice");
}

TEST(SafetensorsHeader, HostileTextStaysOnOneShortLine) {
    refused("{\"" + std::string(10000, '[') + "\": 3}", 0, "...");
    refused("{\"a\\nb\": 3}", 0, "tensor \"a\\nb\"");
    refused("{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}", 0,
            "nested too deeply");
}

TEST(SafetensorsFile, ChecksTheHeaderLengthAndTheFileLength) {
    const TempDir dir;
    const std::string path = dir / "x.safetensors";
    const std::string whole = safetensors_bytes({{"a", {"F32", {2}, "01234567"}}});
    write_file(path, whole);
    const SafetensorsFile file(path);
    char bytes[8];
    file.file().read_at(file.tensors()[0].offset_bytes, 8, bytes);
    EXPECT_EQ(std::string(bytes, 8), "01234567");

    write_file(path, whole.substr(0, 5));
    EXPECT_ERROR(SafetensorsFile{path}, ErrorKind::checkpoint, path, "truncated");
    write_file(path, whole.substr(0, 20));
    EXPECT_ERROR(SafetensorsFile{path}, ErrorKind::checkpoint, path, "wrong header length");
    write_file(path, whole.substr(0, whole.size() - 1));
    EXPECT_ERROR(SafetensorsFile{path}, ErrorKind::checkpoint, path, "\"a\"", "truncated");
    write_file(path, std::string(8, '\xff') + whole.substr(8));
    EXPECT_ERROR(SafetensorsFile{path}, ErrorKind::checkpoint, path, "wrong header length");
    write_file(path, whole + "tail");
    EXPECT_ERROR(SafetensorsFile{path}, ErrorKind::checkpoint, path, "4 bytes after the last");
    EXPECT_ERROR(SafetensorsFile{dir / "none"}, ErrorKind::checkpoint, "none", "No such file");
    EXPECT_ERROR(SafetensorsFile{dir.path()}, ErrorKind::checkpoint, "not a regular file");
}

TEST(SafetensorsIndex, NamesPlainFilesOnly) {
    const auto parse_index = [](const std::string& text) {
        return parse_safetensors_index(text, "index.json");
    };
    const auto files = parse_index(R"({"metadata": {}, "weight_map": {"a": "x.st", "b": "y.st"}})");
    EXPECT_EQ(files.at("a"), "x.st");
    EXPECT_EQ(files.at("b"), "y.st");
    for (const char* text :
         {"{}", "[]", "3", R"({"weight_map": 3})", R"({"weight_map": {}})",
          R"({"weight_map": {"a": 3}})", R"({"weight_map": {"a": "../x"}})",
          R"({"weight_map": {"a": ""}})", R"({"weight_map": {"a": "."}})",
          R"({"weight_map": {"a": "x\u0000y"}})", R"({"weight_map": {"a": "x", "a": "y"}})"})
        EXPECT_ERROR(parse_index(text), ErrorKind::checkpoint, "index.json");
}

}  // namespace
}  // namespace ferry
