// Runs a parsed template.
#pragma once
#include <string>

#include "runtime/jinja/syntax.h"

namespace ferry::jinja {

// The text of the template with `variables`. Throws Error(input) with name and line: for what the
// template refuses by raise_exception(), operations on wrong types, and runaway loops.
std::string render(const Nodes& nodes, const Dict& variables, const Source& source);

}  // namespace ferry::jinja
