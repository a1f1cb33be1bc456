#include "runtime/device_binding.h"

#include <algorithm>
#include <set>

#include "base/check.h"
#include "base/error.h"

namespace ferry {
namespace {

// Two ranks of one device, or -1.
std::pair<int, int> sharing(const std::vector<DeviceTable::Row>& rows) {
    for (size_t i = 0; i < rows.size(); ++i)
        for (size_t j = i + 1; j < rows.size(); ++j)
            if (rows[i].id == rows[j].id) return {static_cast<int>(i), static_cast<int>(j)};
    return {-1, -1};
}

}  // namespace

int device_of_rank(int node_rank, int num_devices) {
    FERRY_CHECK(node_rank >= 0 && num_devices > 0);
    return node_rank % num_devices;
}

DeviceTable gather_device_table(World& world, const std::string& device, const std::string& id) {
    const std::vector<std::string> devices = world.all_gather(device), ids = world.all_gather(id);
    DeviceTable table;
    for (int rank = 0; rank < world.size(); ++rank)
        table.rows.push_back({.host = world.host(rank),
                              .device = devices[static_cast<size_t>(rank)],
                              .id = world.host(rank) + " " + ids[static_cast<size_t>(rank)]});
    return table;
}

std::string DeviceTable::describe() const {
    size_t width = 4;
    for (const Row& row : rows) width = std::max(width, row.host.size());
    std::string text = fmt::format("rank  {:<{}}  device", "host", width);
    for (size_t rank = 0; rank < rows.size(); ++rank)
        text += fmt::format("\n{:>4}  {:<{}}  {}", rank, rows[rank].host, width, rows[rank].device);
    return text;
}

int DeviceTable::num_devices() const {
    std::set<std::string> ids;
    for (const Row& row : rows) ids.insert(row.id);
    return static_cast<int>(ids.size());
}

bool DeviceTable::one_rank_each() const {
    return sharing(rows).first < 0;
}

void DeviceTable::require_one_rank_each() const {
    const auto [first, second] = sharing(rows);
    if (first < 0) return;
    const Row& row = rows[static_cast<size_t>(first)];
    throw Error(ErrorKind::usage,
                "exchange.transport: nccl needs a GPU for each rank, but ranks {} and {} on {} "
                "share {}; start fewer ranks there, or use ucx or mpi, which pass rows through "
                "host memory",
                first, second, row.host, row.device);
}

}  // namespace ferry
