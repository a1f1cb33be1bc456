// Exact agreement with jinja2 as Transformers sets it up (tests/golden/make_chat_templates.py).
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "runtime/chat_template.h"
#include "tests/runtime/golden_lines.h"

namespace ferry {
namespace {

using nlohmann::json;

std::string read_template(const json& test_case) {
    if (test_case.contains("source")) return test_case["source"];
    std::ifstream file(golden_path("chat/" + test_case["file"].get<std::string>()));
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

TEST(ChatTemplateGolden, RendersLikeJinja2) {
    int num_rendered = 0, num_refused = 0;
    std::ifstream file(golden_path("chat/cases.jsonl"));
    for (std::string line; std::getline(file, line);) {
        // the order of keys matters to the templates
        const auto test_case = nlohmann::ordered_json::parse(line);
        const std::string source = read_template(test_case);
        std::string text, error;
        try {
            const ChatTemplate chat(source, {"<BOS>", "<EOS>"}, "t.jinja");
            text = chat.render_json(test_case["messages"].dump(),
                                    test_case["add_generation_prompt"].get<bool>(),
                                    test_case["variables"].dump());
        } catch (const Error& caught) {
            error = caught.what();
        }
        if (test_case.contains("error")) {
            EXPECT_NE(error, "") << source << "\ngave: " << text;
            ++num_refused;
        } else {
            EXPECT_EQ(error, "") << source << "\n" << test_case["messages"];
            EXPECT_EQ(text, test_case["expected"].get<std::string>())
                << source << "\n"
                << test_case["messages"] << test_case["variables"];
            ++num_rendered;
        }
    }
    EXPECT_GT(num_rendered, 150);
    EXPECT_GT(num_refused, 25);
}

}  // namespace
}  // namespace ferry
