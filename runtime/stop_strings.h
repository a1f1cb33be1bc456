// Finds stop strings in text that comes in pieces, and says how much of it can be shown already.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

class StopStrings {
  public:
    // Empty strings are left out: they would stop everything.
    explicit StopStrings(std::vector<std::string> strings);

    // Appends a piece. True when a stop string is complete: text() then ends before it (of several,
    // before the one that ends first; of those, the one that begins first), and further pieces
    // are ignored.
    bool push(std::string_view piece);
    // Appends a piece that no stop string ends in.
    void pass(std::string_view piece) { text_ += piece; }

    bool stopped() const { return stopped_; }
    const std::string& text() const { return text_; }
    // Leading bytes of text() that no stop string can still take back. All of it once stopped.
    size_t num_safe_bytes() const;

  private:
    std::vector<std::string> strings_;
    std::string text_;
    bool stopped_ = false;
};

}  // namespace ferry
