// Gathers everything that is wrong with a checkpoint, so that it is told at once.
#pragma once
#include <fmt/format.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace ferry {

class Problems {
  public:
    template <typename... Args>
    void add(fmt::format_string<Args...> format, Args&&... args) {
        list_.push_back(fmt::format(format, std::forward<Args>(args)...));
    }
    bool empty() const { return list_.empty(); }
    const std::vector<std::string>& list() const { return list_; }

    // Throws Error(checkpoint) "WHERE: 2 problems: ...; ..." when there are any.
    void throw_if_any(const std::string& where) const {
        if (list_.empty()) return;
        constexpr size_t kShown = 20;
        const size_t shown = std::min(list_.size(), kShown);
        std::string text = fmt::format("{}", fmt::join(list_.begin(), list_.begin() + shown, "; "));
        if (shown < list_.size()) text += fmt::format("; and {} more", list_.size() - shown);
        if (list_.size() == 1) throw Error(ErrorKind::checkpoint, "{}: {}", where, text);
        throw Error(ErrorKind::checkpoint, "{}: {} problems: {}", where, list_.size(), text);
    }

  private:
    std::vector<std::string> list_;
};

}  // namespace ferry
