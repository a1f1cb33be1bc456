// Text that a command writes for its user: to standard output or to a file that was named. All
// throw Error(input) that names the place.
#pragma once
#include <string>
#include <string_view>

namespace ferry {

// To standard output, now: a full disk or a closed pipe behind it must not pass for success.
void print_text(std::string_view text);
// What stdio still holds.
void flush_output();

// The whole file; "-": standard output.
void write_text(const std::string& path, std::string_view text);
// Before a run that may last for hours: whether write_text(), or another writer, could open `path`
// at its end. Leaves the file, or its absence, as it is. Empty and "-": nothing to look at.
void check_writable(const std::string& path);

}  // namespace ferry
