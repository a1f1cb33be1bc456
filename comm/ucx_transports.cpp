#include "comm/ucx_transports.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#if FERRY_HAS_UCX
#include "comm/ucx_api.h"
#endif

namespace ferry {

#if FERRY_HAS_UCX

std::vector<std::string> ucx_transports() {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_TAG;
    ucp_context_h context = nullptr;
    if (ucp_init(&params, nullptr, &context) != UCS_OK) return {};
    // UCP tells its resources to people only: "#  resource 1  :  md 1  dev 1  flags -- tcp/eth0".
    char* text = nullptr;
    size_t size = 0;
    if (FILE* stream = open_memstream(&text, &size)) {
        ucp_context_print_info(context, stream);
        std::fclose(stream);
    }
    ucp_cleanup(context);
    std::vector<std::string> transports;
    std::istringstream lines(std::string(text == nullptr ? "" : text, size));
    std::free(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t name = line.rfind("-- ");
        if (line.find(" resource ") == line.npos || name == line.npos) continue;
        std::string transport = line.substr(name + 3);
        transport.erase(transport.find_last_not_of(" \n") + 1);
        if (!transport.starts_with("self/")) transports.push_back(transport);
    }
    std::sort(transports.begin(), transports.end());
    return transports;
}

#else

std::vector<std::string> ucx_transports() {
    return {};
}

#endif

}  // namespace ferry
