// What a template makes of the contents of messages.
#pragma once
#include "runtime/jinja/syntax.h"

namespace ferry::jinja {

// Whether it goes through the content of a message as through a list: a loop over x.content,
// x['content'] or x.get('content'), also by way of a variable or an argument of a macro, or
// selectattr, rejectattr or map of it.
bool takes_content_lists(const Nodes& nodes);

}  // namespace ferry::jinja
