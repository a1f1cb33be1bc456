#include "runtime/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <optional>
#include <sstream>

namespace ferry {
namespace {

class TreeBuilder : public YAML::EventHandler {
  public:
    TreeBuilder(const std::string& name, ErrorKind kind) : name_(name), kind_(kind) {}

    YamlValue take_root() { return std::move(root_); }

    void OnDocumentStart(const YAML::Mark& mark) override {
        if (num_documents_++ > 0) fail(mark, "a second document is not allowed");
    }
    void OnDocumentEnd() override {}
    void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { add(mark, YamlValue()); }
    void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
        fail(mark, "aliases (*name) are not allowed");
    }
    void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  const std::string& value) override {
        check_tag(mark, tag);
        YamlValue scalar;
        scalar.kind = YamlValue::Kind::scalar;
        scalar.quoted = tag == "!";
        scalar.text = value;
        add(mark, std::move(scalar));
    }
    void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                         YAML::EmitterStyle::value) override {
        check_tag(mark, tag);
        open(mark, YamlValue::Kind::sequence);
    }
    void OnSequenceEnd() override { close(); }
    void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                    YAML::EmitterStyle::value) override {
        check_tag(mark, tag);
        open(mark, YamlValue::Kind::mapping);
    }
    void OnMapEnd() override { close(); }

    [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what) const {
        throw Error(kind_, "{}:{}:{}: {}", name_, mark.line + 1, mark.column + 1, what);
    }

  private:
    // A collection that is open, with the key that waits for its value.
    struct Level {
        YamlValue value;
        std::optional<YamlValue::Entry> entry;
    };

    void check_tag(const YAML::Mark& mark, const std::string& tag) const {
        if (!tag.empty() && tag != "?" && tag != "!") fail(mark, "tags (!name) are not allowed");
    }

    void open(const YAML::Mark& mark, YamlValue::Kind kind) {
        if (levels_.size() >= kMaxYamlDepth) fail(mark, "nested too deeply");
        if (expects_key()) fail(mark, "a key must be a plain word");
        YamlValue value;
        value.kind = kind;
        set_mark(mark, value);
        levels_.push_back({std::move(value), std::nullopt});
    }

    void close() {
        YamlValue value = std::move(levels_.back().value);
        levels_.pop_back();
        attach(std::move(value));
    }

    void add(const YAML::Mark& mark, YamlValue value) {
        set_mark(mark, value);
        if (!expects_key()) return attach(std::move(value));
        if (value.kind != YamlValue::Kind::scalar) fail(mark, "a key must be a plain word");
        Level& level = levels_.back();
        for (const YamlValue::Entry& entry : level.value.entries)
            if (entry.key == value.text)
                fail(mark, fmt::format("this key is there already, in line {}", entry.line));
        level.entry = YamlValue::Entry{std::move(value.text), value.line, {}};
    }

    bool expects_key() const {
        return !levels_.empty() && levels_.back().value.kind == YamlValue::Kind::mapping &&
               !levels_.back().entry;
    }

    void attach(YamlValue value) {
        if (levels_.empty()) {
            root_ = std::move(value);
            return;
        }
        Level& level = levels_.back();
        if (level.value.kind == YamlValue::Kind::sequence) {
            level.value.items.push_back(std::move(value));
            return;
        }
        level.entry->value = std::move(value);
        level.value.entries.push_back(std::move(*level.entry));
        level.entry.reset();
    }

    static void set_mark(const YAML::Mark& mark, YamlValue& value) {
        value.line = mark.line + 1;
        value.column = mark.column + 1;
    }

    std::string name_;
    ErrorKind kind_;
    YamlValue root_;
    std::vector<Level> levels_;
    int num_documents_ = 0;
};

// `line`: from 0.
bool is_indented_by_tab(std::string_view text, int line) {
    for (; line > 0; --line) {
        const size_t end = text.find('\n');
        if (end == std::string_view::npos) return false;
        text.remove_prefix(end + 1);
    }
    const size_t first = text.find_first_not_of(' ');
    return first != std::string_view::npos && text[first] == '\t';
}

}  // namespace

YamlValue parse_yaml(std::string_view text, const std::string& name, ErrorKind kind) {
    if (text.size() > kMaxYamlBytes)
        throw Error(kind, "{}: larger than {} KiB, this is no configuration", name,
                    kMaxYamlBytes >> 10);
    TreeBuilder builder(name, kind);
    std::istringstream stream{std::string(text)};
    try {
        YAML::Parser parser(stream);
        while (parser.HandleNextDocument(builder)) continue;
    } catch (const YAML::Exception& error) {
        builder.fail(error.mark, is_indented_by_tab(text, error.mark.line)
                                     ? "a tab indents this line; YAML takes spaces"
                                     : error.msg);
    }
    return builder.take_root();
}

}  // namespace ferry
