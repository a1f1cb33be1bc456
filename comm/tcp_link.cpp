#include "comm/tcp_link.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace ferry {
namespace {

void prepare(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
    fcntl(socket, F_SETFD, FD_CLOEXEC);
}

[[noreturn]] void fail_to_listen() {
    throw Error(ErrorKind::communication, "the watchdog cannot listen on a TCP port: {}",
                std::strerror(errno));
}

// Null for addresses that are not told to others: of other families, and of one link, which another
// host would have to be told by which of its own interfaces.
const void* number_of(const sockaddr& address) {
    if (address.sa_family == AF_INET)
        return &reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    if (address.sa_family != AF_INET6) return nullptr;
    const in6_addr& number = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
    return IN6_IS_ADDR_LINKLOCAL(&number) ? nullptr : &number;
}

}  // namespace

void TcpLink::close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
}

bool TcpLink::send(const News& news) {
    if (!open()) return false;
    return ::send(socket_, &news, sizeof news, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(sizeof news);
}

std::optional<News> TcpLink::receive(bool& gone) {
    gone = false;
    if (!open()) return std::nullopt;
    if (buffer_.size() < sizeof(News)) {
        char bytes[4096];
        const ssize_t num = recv(socket_, bytes, sizeof bytes, MSG_DONTWAIT);
        if (num > 0)
            buffer_.insert(buffer_.end(), bytes, bytes + num);
        else
            gone = num == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
    }
    if (buffer_.size() < sizeof(News)) return std::nullopt;
    News news;
    std::memcpy(static_cast<void*>(&news), buffer_.data(), sizeof news);
    buffer_.erase(buffer_.begin(), buffer_.begin() + sizeof news);
    news.why[sizeof news.why - 1] = '\0';
    gone = false;
    return news;
}

// IPv6 takes IPv4 as well; a system without it has IPv4 alone.
TcpListener::TcpListener() {
    sockaddr_storage address{};
    auto* const v4 = reinterpret_cast<sockaddr_in*>(&address);
    auto* const v6 = reinterpret_cast<sockaddr_in6*>(&address);
    const int off = 0;
    socklen_t length = sizeof *v6;
    address.ss_family = AF_INET6;  // all bytes 0: any address, any port
    socket_ = ::socket(AF_INET6, SOCK_STREAM, 0);
    if (socket_ < 0 || setsockopt(socket_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0 ||
        bind(socket_, reinterpret_cast<sockaddr*>(&address), length) != 0) {
        if (socket_ >= 0) ::close(socket_);
        length = sizeof *v4;
        address.ss_family = AF_INET;
        socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
        if (socket_ < 0 || bind(socket_, reinterpret_cast<sockaddr*>(&address), length) != 0)
            fail_to_listen();
    }
    if (listen(socket_, 1024) != 0 ||
        getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        fail_to_listen();
    prepare(socket_);
    port_ = ntohs(address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

TcpListener::~TcpListener() {
    if (socket_ >= 0) ::close(socket_);
}

std::optional<TcpLink> TcpListener::accept() {
    const int socket = ::accept(socket_, nullptr, nullptr);
    if (socket < 0) return std::nullopt;
    prepare(socket);
    return TcpLink(socket);
}

std::vector<std::string> own_addresses() {
    std::vector<std::string> addresses, loopback;
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) return {"127.0.0.1", "::1"};
    for (const int family : {AF_INET, AF_INET6})
        for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
            if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != family ||
                (entry->ifa_flags & IFF_UP) == 0)
                continue;
            const void* number = number_of(*entry->ifa_addr);
            char text[INET6_ADDRSTRLEN] = {};
            if (number == nullptr || inet_ntop(family, number, text, sizeof text) == nullptr)
                continue;
            ((entry->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : addresses).push_back(text);
        }
    freeifaddrs(list);
    addresses.insert(addresses.end(), loopback.begin(), loopback.end());
    return addresses;
}

TcpLink connect_to(const std::vector<std::string>& addresses, int port, double timeout_s) {
    for (const std::string& text : addresses) {
        sockaddr_in v4{};
        sockaddr_in6 v6{};
        v4.sin_family = AF_INET;
        v6.sin6_family = AF_INET6;
        v4.sin_port = v6.sin6_port = htons(static_cast<uint16_t>(port));
        const bool is_v4 = inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1;
        if (!is_v4 && inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr) != 1) continue;
        const int socket = ::socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
        if (socket < 0) continue;
        prepare(socket);
        TcpLink link(socket);
        const int refused = is_v4 ? connect(socket, reinterpret_cast<sockaddr*>(&v4), sizeof v4)
                                  : connect(socket, reinterpret_cast<sockaddr*>(&v6), sizeof v6);
        if (refused == 0) return link;
        if (errno != EINPROGRESS) continue;
        pollfd ready{.fd = socket, .events = POLLOUT, .revents = 0};
        if (poll(&ready, 1, static_cast<int>(timeout_s * 1000)) != 1) continue;
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error == 0) return link;
    }
    return {};
}

}  // namespace ferry
