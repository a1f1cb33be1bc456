#include "tests/runtime/report/markup.h"

#include <cctype>
#include <set>
#include <sstream>

namespace ferry::report {
namespace {

const std::set<std::string> kVoid{"meta", "link", "br", "img"};
const std::map<std::string, std::string> kEntities{
    {"amp", "&"}, {"lt", "<"}, {"gt", ">"}, {"quot", "\""}, {"#39", "'"}};

class Reader {
  public:
    explicit Reader(const std::string& text) : text_(text) {}

    Markup read() {
        if (take("<!DOCTYPE html>")) take("\n");
        while (at_ < text_.size() && markup_.error.empty()) {
            if (take("</"))
                close();
            else if (take("<"))
                open();
            else
                words();
        }
        if (markup_.error.empty() && !open_.empty())
            fail(markup_.elements[open_.back()].name + " is not closed");
        return markup_;
    }

  private:
    bool take(const std::string& token) {
        if (text_.compare(at_, token.size(), token) != 0) return false;
        at_ += token.size();
        return true;
    }
    void fail(const std::string& what) {
        if (markup_.error.empty()) markup_.error = what + " at byte " + std::to_string(at_);
    }
    std::string name() {
        const size_t begin = at_;
        while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) ||
                                      text_[at_] == '-' || text_[at_] == ':'))
            ++at_;
        if (at_ == begin) fail("a name is missing");
        return text_.substr(begin, at_ - begin);
    }
    std::string plain(const std::string& raw) {
        std::string result;
        for (size_t i = 0; i < raw.size(); ++i) {
            if (raw[i] != '&') {
                result += raw[i];
                continue;
            }
            const size_t end = raw.find(';', i);
            const auto found = kEntities.find(raw.substr(i + 1, end - i - 1));
            if (end == std::string::npos || found == kEntities.end()) {
                fail("an entity is unknown in \"" + raw.substr(i, 12) + "\"");
                return result;
            }
            result += found->second;
            i = end;
        }
        return result;
    }
    void attributes(Element& element) {
        while (markup_.error.empty() && take(" ")) {
            const std::string key = name();
            if (!take("=\"")) return fail("attribute " + key + " has no quoted value");
            const size_t end = text_.find('"', at_);
            if (end == std::string::npos) return fail("attribute " + key + " does not end");
            const std::string raw = text_.substr(at_, end - at_);
            if (raw.find('<') != std::string::npos) return fail("< in attribute " + key);
            if (!element.attributes.emplace(key, plain(raw)).second) fail(key + " is there twice");
            at_ = end + 1;
            if (key == "id" && !ids_.insert(element.attributes[key]).second)
                fail("id " + element.attributes[key] + " is there twice");
        }
    }
    void open() {
        Element element{.name = name(), .attributes = {}, .text = {}};
        element.parent = open_.empty() ? -1 : static_cast<int>(open_.back());
        attributes(element);
        const bool empty = take("/>");
        if (!empty && !take(">")) return fail("the tag of " + element.name + " does not end");
        const std::string tag = element.name;
        markup_.elements.push_back(std::move(element));
        if (empty || kVoid.contains(tag)) return;
        open_.push_back(markup_.elements.size() - 1);
        if (tag != "style") return;
        const size_t end = text_.find("</style>", at_);
        if (end == std::string::npos) return fail("style does not end");
        at_ = end;
    }
    void close() {
        const std::string tag = name();
        if (!take(">")) return fail("the end of " + tag + " does not end");
        if (open_.empty() || markup_.elements[open_.back()].name != tag)
            return fail("</" + tag + "> closes what is not open");
        open_.pop_back();
    }
    void words() {
        const size_t end = std::min(text_.find('<', at_), text_.size());
        const std::string raw = text_.substr(at_, end - at_);
        if (raw.find('>') != std::string::npos) fail("> in text");
        at_ = end;
        const std::string text = plain(raw);
        if (!open_.empty()) markup_.elements[open_.back()].text += text;
    }

    const std::string& text_;
    size_t at_ = 0;
    std::vector<size_t> open_;
    std::set<std::string> ids_;
    Markup markup_;
};

}  // namespace

std::vector<const Element*> Markup::with_class(const std::string& name) const {
    std::vector<const Element*> found;
    for (const Element& element : elements) {
        const auto classes = element.attributes.find("class");
        if (classes == element.attributes.end()) continue;
        std::istringstream words(classes->second);
        for (std::string word; words >> word;)
            if (word == name) found.push_back(&element);
    }
    return found;
}

Markup read_markup(const std::string& text) {
    return Reader(text).read();
}

}  // namespace ferry::report
