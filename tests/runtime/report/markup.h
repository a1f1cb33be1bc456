// A strict reader of the pages that reports write: every element is closed in order, attributes are
// quoted, entities are known, ids are unique.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace ferry::report {

struct Element {
    std::string name;
    std::map<std::string, std::string> attributes;
    std::string text;  // directly inside, entities replaced
    int parent = -1;   // index of the element around it
};

struct Markup {
    std::vector<Element> elements;  // in order of their begin
    std::string error;              // empty: well formed

    std::vector<const Element*> with_class(const std::string& name) const;
};

Markup read_markup(const std::string& text);

}  // namespace ferry::report
