#include <CLI/CLI.hpp>

#include "base/error.h"
#include "launch/commands.h"
#include "launch/version_config.h"

int main(int argc, char** argv) {
    CLI::App app{"Ferry: distributed inference for mixture-of-experts models", "ferry"};
    app.set_version_flag("--version", "ferry " FERRY_VERSION);
    app.require_subcommand(0, 1);
    ferry::add_convert(app);
    ferry::add_inspect(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        const int code = app.exit(error);
        return code == 0 ? 0 : ferry::exit_code(ferry::ErrorKind::usage);
    } catch (const ferry::Error& error) {
        fmt::print(stderr, "ferry: {}\n", error.what());
        return ferry::exit_code(error.kind());
    }
    return 0;
}
