// cpp-httplib's server with what a web node needs beside it: it ends gracefully, and no connection goes on
// behind a body that nobody has read.
//
// cpp-httplib reads a body only for some methods, and only if a handler asks; what it has not read it would
// take for the next request. Behind a proxy that shares connections among browsers, that would be one that a
// browser has hidden in a body. So a connection ends with its answer if the body was not read to its end.
#ifndef SELVAGE_EXAMPLE_SERVER_HPP
#define SELVAGE_EXAMPLE_SERVER_HPP

#include <httplib.h>

#include <array>
#include <atomic>
#include <chrono>
#include <poll.h>

namespace example {

// Set by an answer behind which its connection ends.
inline void close_after(httplib::Response &answer) { answer.set_header("Connection", "close"); }

// A connection's bytes, with a time limit on each wait.
class connection final : public httplib::Stream {
public:
    connection(socket_t socket, std::chrono::milliseconds patience) : socket_(socket), patience_(patience) {}

    // Waits for the first byte of a request; false if none comes, or `stop` became readable and none has come
    // within a moment of that.
    bool next_request(int stop) const;
    // Says that nothing more is sent, and lets the peer read it: a reset would take it away.
    void linger();

    bool is_readable() const override { return at_ < end_ || wait(POLLIN, patience_); }
    bool is_writable() const override { return wait(POLLOUT, patience_); }
    ssize_t read(char *to, size_t size) override;
    using httplib::Stream::write;
    ssize_t write(const char *from, size_t size) override;
    void get_remote_ip_and_port(std::string &ip, int &port) const override;
    void get_local_ip_and_port(std::string &ip, int &port) const override;
    socket_t socket() const override { return socket_; }

private:
    bool wait(short what, std::chrono::milliseconds limit) const;

    socket_t socket_;
    std::chrono::milliseconds patience_;
    std::array<char, 16384> buffer_{};
    size_t at_ = 0;
    size_t end_ = 0;
};

class server final : public httplib::Server {
public:
    // Called in a handler's place, with the body to be read, or nullptr if the request has none.
    using handler =
        std::function<void(const httplib::Request &, httplib::Response &, const httplib::ContentReader *)>;

    // Every connection has one of so many threads to itself.
    server(handler answer, size_t threads);
    ~server() override;

    // Binds to the address. False if that is not possible; errno says why.
    bool open(const std::string &host, int port);
    // Serves until `end`.
    bool serve() { return listen_after_bind(); }
    // Accepts nobody any more, answers what is under way, and lets serve return. From any thread.
    void end();

private:
    bool process_and_close_socket(socket_t socket) override;

    handler answer_;
    std::atomic<bool> ending_{false};
    int stop_ = -1;
};

}  // namespace example

#endif
