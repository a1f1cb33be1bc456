// Small fixed-size messages over TCP between the watchdogs' threads. Non-blocking once connected.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/progress_state.h"

namespace ferry {

enum class NewsKind : uint32_t { hello, heartbeat, farewell, lost, stalled };

struct News {
    uint32_t magic = 0x46455257;
    NewsKind kind = NewsKind::heartbeat;
    int32_t rank = -1;  // whom it is about
    uint32_t key = 0;   // of the job, so that strangers are refused
    char why[48] = {};
    RankStatus status{};  // of the sender, in a heartbeat
};

// One end of a connection; closes itself.
class TcpLink {
  public:
    TcpLink() = default;
    explicit TcpLink(int socket) : socket_(socket) {}
    TcpLink(TcpLink&& other) noexcept { swap(other); }
    TcpLink& operator=(TcpLink&& other) noexcept {
        TcpLink taken(std::move(other));
        swap(taken);
        return *this;
    }
    ~TcpLink() { close(); }

    bool open() const { return socket_ >= 0; }
    int socket() const { return socket_; }
    void close();
    // Best effort: false when the peer is gone or its buffer is full.
    bool send(const News& news);
    // The next whole message; null when there is none now. `gone` is set at the end of the stream.
    std::optional<News> receive(bool& gone);

  private:
    void swap(TcpLink& other) noexcept {
        std::swap(socket_, other.socket_);
        std::swap(buffer_, other.buffer_);
    }
    int socket_ = -1;
    std::vector<char> buffer_;
};

// Listens on all addresses, of IPv4 and IPv6, on a port that the system picks.
class TcpListener {
  public:
    TcpListener();  // throws Error(communication)
    ~TcpListener();
    TcpListener(const TcpListener&) = delete;
    TcpListener& operator=(const TcpListener&) = delete;
    int socket() const { return socket_; }
    int port() const { return port_; }
    std::optional<TcpLink> accept();  // never blocks

  private:
    int socket_ = -1;
    int port_ = 0;
};

// Addresses of this host that are up: of IPv4, of IPv6, loopback last.
std::vector<std::string> own_addresses();
// Tries addresses in order, each for at most timeout_s. Not open when none answers.
TcpLink connect_to(const std::vector<std::string>& addresses, int port, double timeout_s);

}  // namespace ferry
