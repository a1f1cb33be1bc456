#include "comm/transport.h"

#include "base/error.h"
#include "comm/transport_mpi.h"
#include "comm/transport_ucx.h"
#include "comm/world.h"

namespace ferry {

constexpr bool kHasUcx = FERRY_HAS_UCX;

std::unique_ptr<Transport> make_transport(std::string_view name, World& world, std::string* why,
                                          const TransportOptions& options) {
    const auto choose = [&](const char* reason) {
        if (why != nullptr) *why = reason;
    };
    if (name == "auto") {
        if (world.size() == 1) {
            choose("exchange.transport: self, as there is one rank");
            return make_self_transport();
        }
        if (kHasUcx) {
            choose("exchange.transport: ucx, the fastest in this build for CPU ranks");
            return make_ucx_transport(world, options);
        }
        choose("exchange.transport: mpi, as this build has no UCX");
        return make_mpi_transport(world);
    }
    if (name == "self") {
        if (world.size() > 1)
            throw Error(ErrorKind::usage,
                        "exchange.transport: self serves one rank, but this world has {}; use auto",
                        world.size());
        return make_self_transport();
    }
    if (name == "mpi") return make_mpi_transport(world);
    if (name == "ucx") return make_ucx_transport(world, options);
    if (name == "nccl")
        throw Error(ErrorKind::usage,
                    "exchange.transport: nccl moves rows between GPUs only (engine.device: cuda); "
                    "use ucx, mpi or auto");
    throw Error(ErrorKind::usage, "exchange.transport: {} is none of auto, self, mpi, ucx, nccl",
                name);
}

}  // namespace ferry
