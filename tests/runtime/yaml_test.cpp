#include "runtime/yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

using Kind = YamlValue::Kind;

TEST(Yaml, BuildsATreeWithPlaces) {
    const YamlValue root = parse_yaml("a: 1\nb:\n  - x\n  - 'y: z'\nc: {d: [], e: }\n", "f.yaml");
    ASSERT_EQ(root.kind, Kind::mapping);
    ASSERT_EQ(root.entries.size(), 3u);
    EXPECT_EQ(root.entries[0].key, "a");
    EXPECT_EQ(root.entries[0].value.text, "1");
    EXPECT_FALSE(root.entries[0].value.quoted);
    const YamlValue& list = root.entries[1].value;
    ASSERT_EQ(list.items.size(), 2u);
    EXPECT_EQ(list.items[1].text, "y: z");
    EXPECT_TRUE(list.items[1].quoted);
    EXPECT_EQ(list.items[1].line, 4);
    EXPECT_EQ(list.items[1].column, 5);
    const YamlValue& mapping = root.entries[2].value;
    EXPECT_EQ(root.entries[2].line, 5);
    EXPECT_EQ(mapping.entries[0].value.kind, Kind::sequence);
    EXPECT_EQ(mapping.entries[1].value.kind, Kind::null);
}

TEST(Yaml, NothingIsNull) {
    EXPECT_EQ(parse_yaml("", "f").kind, Kind::null);
    EXPECT_EQ(parse_yaml("# only a comment\n", "f").kind, Kind::null);
    EXPECT_EQ(parse_yaml("~", "f").kind, Kind::null);
}

TEST(Yaml, AScalarAlone) {
    EXPECT_EQ(parse_yaml("hello", "f").text, "hello");
}

struct Refusal {
    const char* text;
    const char* place;
    const char* what;
};

TEST(Yaml, RefusesWithThePlace) {
    const Refusal refusals[] = {
        {"a: 1\na: 2\n", "f.yaml:2:1: ", "already, in line 1"},
        {"a: &x 1\nb: *x\n", "f.yaml:2:4: ", "aliases"},
        {"a: !!int 1\n", "f.yaml:1:", "tags"},
        {"a: 1\n---\nb: 2\n", "f.yaml:", "second document"},
        {"? [a, b]\n: 1\n", "f.yaml:1:", "a key must be"},
        {"~: 1\n", "f.yaml:1:", "a key must be"},
        {"a: [1, 2\nb: 3\n", "f.yaml:", ""},
        {"a: b: c\n", "f.yaml:1:", ""},
        {"\ta: 1\n", "f.yaml:1:", "a tab indents this line"},
        {"a:\n\tb: 1\n", "f.yaml:2:", "a tab indents this line"},
        {"a:\n  b: 1\n \tc: 1\n", "f.yaml:3:", "a tab indents this line"},
    };
    for (const Refusal& refusal : refusals) {
        EXPECT_ERROR(parse_yaml(refusal.text, "f.yaml"), ErrorKind::usage, refusal.place,
                     refusal.what);
    }
}

TEST(Yaml, DepthAndSizeAreBounded) {
    EXPECT_ERROR(parse_yaml(std::string(1000, '[') + std::string(1000, ']'), "f"), ErrorKind::usage,
                 "nested too deeply");
    std::string blocks;
    for (int i = 0; i < 1000; ++i) blocks += "- ";
    EXPECT_ERROR(parse_yaml(blocks, "f"), ErrorKind::usage, "nested too deeply");
    EXPECT_ERROR(parse_yaml(std::string(kMaxYamlBytes + 1, ' '), "f"), ErrorKind::usage,
                 "larger than");
    // An alias bomb stops at its first alias.
    EXPECT_ERROR(parse_yaml("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "f"),
                 ErrorKind::usage, "f:2:8: aliases");
}

TEST(Yaml, KindOfErrorIsTheCallers) {
    EXPECT_ERROR(parse_yaml("[", "f", ErrorKind::checkpoint), ErrorKind::checkpoint, "f:");
}

}  // namespace
}  // namespace ferry
