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

TcpListener::TcpListener() {
    socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    socklen_t length = sizeof address;
    if (socket_ < 0 || bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        listen(socket_, 1024) != 0 ||
        getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        throw Error(ErrorKind::communication, "the watchdog cannot listen on a TCP port: {}",
                    std::strerror(errno));
    prepare(socket_);
    port_ = ntohs(address.sin_port);
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
    if (getifaddrs(&list) != 0) return {"127.0.0.1"};
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
        if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET ||
            (entry->ifa_flags & IFF_UP) == 0)
            continue;
        char text[INET_ADDRSTRLEN] = {};
        inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(entry->ifa_addr)->sin_addr, text,
                  sizeof text);
        ((entry->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : addresses).push_back(text);
    }
    freeifaddrs(list);
    addresses.insert(addresses.end(), loopback.begin(), loopback.end());
    return addresses;
}

TcpLink connect_to(const std::vector<std::string>& addresses, int port, double timeout_s) {
    for (const std::string& text : addresses) {
        const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
        if (socket < 0) continue;
        prepare(socket);
        TcpLink link(socket);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        inet_pton(AF_INET, text.c_str(), &address.sin_addr);
        if (connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
            return link;
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
