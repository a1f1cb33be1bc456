// What UCX could use on this host, for `ferry doctor`.
#pragma once
#include <string>
#include <vector>

namespace ferry {

// "tcp/eth0", "rc_mlx5/mlx5_0:1", sorted, after UCX_TLS and UCX_NET_DEVICES. Empty when UCX
// is not built in or finds none.
std::vector<std::string> ucx_transports();

}  // namespace ferry
