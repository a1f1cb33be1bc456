// The only file that includes ucp.h, and the few helpers that its users share.
#pragma once
#include <ucp/api/ucp.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace ferry {

inline void ucx_check(ucs_status_t status, const char* what) {
    if (status == UCS_OK) return;
    throw Error(ErrorKind::communication, "UCX: {} failed: {}", what, ucs_status_string(status));
}

// Memory that UCX allocated and registered, so that peers may map it or put into it.
class Region {
  public:
    Region() = default;
    Region(ucp_context_h context, size_t size_bytes) : context_(context) {
        ucp_mem_map_params_t params{};
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
        params.length = std::max<size_t>(size_bytes, 64);
        params.flags = UCP_MEM_MAP_ALLOCATE;
        ucx_check(ucp_mem_map(context, &params, &handle_), "registering memory");
        ucp_mem_attr_t attributes{};
        attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
        ucx_check(ucp_mem_query(handle_, &attributes), "asking for registered memory");
        data_ = static_cast<std::byte*>(attributes.address);
    }
    Region(Region&& other) noexcept { *this = std::move(other); }
    Region& operator=(Region&& other) noexcept {
        std::swap(context_, other.context_);
        std::swap(handle_, other.handle_);
        std::swap(data_, other.data_);
        return *this;
    }
    ~Region() {
        if (handle_ != nullptr) ucp_mem_unmap(context_, handle_);
    }
    std::byte* data() const { return data_; }
    ucp_mem_h handle() const { return handle_; }
    std::string pack_key() const {
        void* key = nullptr;
        size_t size = 0;
        ucx_check(ucp_rkey_pack(context_, handle_, &key, &size), "packing a remote key");
        std::string text(static_cast<const char*>(key), size);
        ucp_rkey_buffer_release(key);
        return text;
    }

  private:
    ucp_context_h context_ = nullptr;
    ucp_mem_h handle_ = nullptr;
    std::byte* data_ = nullptr;
};

// Whether UCX has a one-sided lane to the peer that is not TCP's emulation.
inline bool has_one_sided_lane(ucp_ep_h endpoint) {
    char* text = nullptr;
    size_t size = 0;
    FILE* stream = open_memstream(&text, &size);
    if (stream == nullptr) return false;
    ucp_ep_print_info(endpoint, stream);
    std::fclose(stream);
    const std::string_view all(text, size);
    bool found = false;
    for (size_t at = 0; at < all.size() && !found;) {
        const size_t end = std::min(all.find('\n', at), all.size());
        const std::string_view line = all.substr(at, end - at);
        found = line.find("lane[") != line.npos && line.find("rma") != line.npos &&
                line.find("tcp/") == line.npos;
        at = end + 1;
    }
    std::free(text);
    return found;
}

}  // namespace ferry
