#include "runtime/tokenizer/tiktoken.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

#include "runtime/tokenizer/byte_level.h"

namespace ferry::tok {
namespace {

// `pat_str` of moonshotai/Kimi-K2-Instruct, tokenization_kimi.py.
constexpr const char* kPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The programs, and how many ids they have behind the tokens of the file; those that
// tokenizer_config.json leaves out have a name too.
struct Program {
    std::string_view name;
    size_t num_special_tokens;
};
constexpr Program kPrograms[] = {{"tokenization_kimi.TikTokenTokenizer", 256},
                                 {"tokenization_moonshot.TikTokenTokenizer", 258}};

const Program* find_program(const Json& config) {
    if (!config.is_object() || !config.contains("auto_map") || !config["auto_map"].is_object())
        return nullptr;
    const Json classes = config["auto_map"].value("AutoTokenizer", Json());
    const Json& name = classes.is_array() && !classes.empty() ? classes[0] : classes;
    for (const Program& program : kPrograms)
        if (name == program.name) return &program;
    return nullptr;
}

int base64_value(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

std::optional<std::string> decode_base64(std::string_view text) {
    if (text.empty() || text.size() % 4 != 0) return std::nullopt;
    const size_t num_padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
    std::string bytes;
    uint32_t bits = 0;
    for (size_t i = 0; i < text.size() - num_padding; ++i) {
        const int value = base64_value(text[i]);
        if (value < 0) return std::nullopt;
        bits = bits << 6 | uint32_t(value);
        if (i % 4 != 0) bytes.push_back(char(bits >> (6 - i % 4 * 2)));
    }
    return bytes;
}

std::optional<size_t> read_number(std::string_view text) {
    size_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return number;
}

}  // namespace

bool is_kimi_config(const Json& config) {
    return find_program(config) != nullptr;
}

std::vector<std::string> read_tiktoken(std::string_view text, const Where& where) {
    std::vector<std::string> tokens;
    for (size_t number = 1; !text.empty(); ++number) {
        std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line.empty()) continue;
        const size_t space = line.find(' ');
        const std::optional<std::string> bytes = decode_base64(line.substr(0, space));
        const std::optional<size_t> rank =
            space == line.npos ? std::nullopt : read_number(line.substr(space + 1));
        if (!bytes || !rank)
            where.fail(fmt::format("line {}: is not a token in base64 and its rank", number));
        if (*rank != tokens.size())
            where.fail(
                fmt::format("line {}: has rank {}, expected {}", number, *rank, tokens.size()));
        append_byte_level(*bytes, &tokens.emplace_back());
    }
    return tokens;
}

Json kimi_components(const Json& config, size_t num_tokens, const Where& where) {
    const size_t num_ids = num_tokens + find_program(config)->num_special_tokens;
    Json added = Json::array();
    for (size_t id = num_tokens; id < num_ids; ++id)
        added.push_back({{"id", id},
                         {"content", fmt::format("<|reserved_token_{}|>", id)},
                         {"special", true},
                         {"normalized", false}});
    if (!is_absent(config, "added_tokens_decoder"))
        for (const auto& [key, token] :
             need_object(config, "added_tokens_decoder", where).items()) {
            const Where here = where.at("added_tokens_decoder").at(key);
            const std::optional<size_t> id = read_number(key);
            if (!id || *id < num_tokens || *id >= num_ids)
                here.fail(fmt::format("is no id from {} to {}", num_tokens, num_ids - 1));
            if (!token.is_object()) here.fail("is not an object");
            Json& entry = added[*id - num_tokens];
            entry["content"] = need_string(token, "content", here);
            entry["special"] = get_bool(token, "special", false, here);
        }
    const Json split = {
        {"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}};
    const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    return {{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"added_tokens", added}};
}

}  // namespace ferry::tok
