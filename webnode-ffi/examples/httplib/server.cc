#include "server.hpp"

#include <arpa/inet.h>
#include <cerrno>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace example {

namespace {

using std::chrono::milliseconds;

// Longest wait for the next bytes of a request or for room for an answer's.
constexpr milliseconds patience(60000);
// An idle connection is closed after this time.
constexpr milliseconds idle(75000);
// A request that was sent before its sender could know that the server ends is still answered.
constexpr milliseconds grace(250);
// Longest time that a refused sender's bytes are thrown away, so that it reads the refusal.
constexpr milliseconds lingering(5000);
// Connections that wait to be accepted.
constexpr int backlog = 1024;

// Of the connection of this thread: whether the head of the request could be read, and whether the connection
// ends with its answer.
thread_local bool understood = false;
thread_local bool closing = false;

void address_of(const sockaddr_storage &address, std::string &ip, int &port)
{
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (address.ss_family == AF_INET) {
        const auto &in = reinterpret_cast<const sockaddr_in &>(address);
        ip = inet_ntop(AF_INET, &in.sin_addr, text.data(), text.size());
        port = ntohs(in.sin_port);
    } else if (address.ss_family == AF_INET6) {
        const auto &in = reinterpret_cast<const sockaddr_in6 &>(address);
        ip = inet_ntop(AF_INET6, &in.sin6_addr, text.data(), text.size());
        port = ntohs(in.sin6_port);
    }
}

// Takes out of a request what cpp-httplib would act on: the session API takes bodies as they come and answers
// whole.
void prepare(httplib::Request &request)
{
    for (const char *name : {"Accept-Encoding", "Content-Encoding", "Content-Type", "Range"}) {
        request.headers.erase(name);
    }
    request.ranges.clear();
    understood = true;
}

}  // namespace

bool connection::wait(short what, milliseconds limit) const
{
    pollfd here{socket_, what, 0};
    int ready = 0;
    do {
        ready = poll(&here, 1, static_cast<int>(limit.count()));
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}

bool connection::next_request(int stop) const
{
    if (at_ < end_) {
        return true;
    }
    std::array<pollfd, 2> both{{{socket_, POLLIN, 0}, {stop, POLLIN, 0}}};
    int ready = 0;
    do {
        ready = poll(both.data(), both.size(), static_cast<int>(idle.count()));
    } while (ready < 0 && errno == EINTR);
    return ready > 0 && (both[0].revents != 0 || wait(POLLIN, grace));
}

ssize_t connection::read(char *to, size_t size)
{
    if (at_ == end_) {
        if (!wait(POLLIN, patience_)) {
            return -1;
        }
        const ssize_t got = recv(socket_, buffer_.data(), buffer_.size(), 0);
        if (got <= 0) {
            return got;
        }
        at_ = 0;
        end_ = static_cast<size_t>(got);
    }
    const size_t part = std::min(size, end_ - at_);
    std::copy_n(buffer_.data() + at_, part, to);
    at_ += part;
    return static_cast<ssize_t>(part);
}

ssize_t connection::write(const char *from, size_t size)
{
    size_t sent = 0;
    while (sent < size) {
        if (!wait(POLLOUT, patience_)) {
            return -1;
        }
        const ssize_t part = send(socket_, from + sent, size - sent, MSG_NOSIGNAL);
        if (part < 0) {
            return -1;
        }
        sent += static_cast<size_t>(part);
    }
    return static_cast<ssize_t>(sent);
}

void connection::linger()
{
    shutdown(socket_, SHUT_WR);
    const auto end = std::chrono::steady_clock::now() + lingering;
    for (;;) {
        const auto left = std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0 || !wait(POLLIN, left)
            || recv(socket_, buffer_.data(), buffer_.size(), 0) <= 0) {
            return;
        }
    }
}

void connection::get_remote_ip_and_port(std::string &ip, int &port) const
{
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    if (getpeername(socket_, reinterpret_cast<sockaddr *>(&address), &size) == 0) {
        address_of(address, ip, port);
    }
}

void connection::get_local_ip_and_port(std::string &ip, int &port) const
{
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    if (getsockname(socket_, reinterpret_cast<sockaddr *>(&address), &size) == 0) {
        address_of(address, ip, port);
    }
}

server::server(handler answer, size_t threads) : answer_(std::move(answer)), stop_(eventfd(0, EFD_CLOEXEC))
{
    new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
    set_tcp_nodelay(true);
    set_pre_routing_handler([this](const auto &request, auto &response) {
        if (request.has_header("Content-Length") || request.has_header("Transfer-Encoding")) {
            // Goes on to the handlers below, which can read it, or to an answer that ends the connection.
            close_after(response);
            return HandlerResponse::Unhandled;
        }
        answer_(request, response, nullptr);
        return HandlerResponse::Handled;
    });
    const auto with_body = [this](const auto &request, auto &response, const auto &body) {
        answer_(request, response, &body);
    };
    const auto without = [this](const auto &request, auto &response) { answer_(request, response, nullptr); };
    const char *everything = R"([\s\S]*)";
    Put(everything, with_body).Post(everything, with_body).Delete(everything, with_body);
    Patch(everything, with_body).Get(everything, without).Options(everything, without);
    set_post_routing_handler([](const auto &, auto &response) {
        if (!understood) {
            // Where the next request begins nobody knows.
            close_after(response);
        }
        closing = response.get_header_value("Connection") == "close";
        // Of cpp-httplib's own headers those that say nothing, or nothing true.
        response.headers.erase("Keep-Alive");
        response.headers.erase("Accept-Ranges");
        if (response.status == 204) {
            response.headers.erase("Content-Length");
        }
    });
}

server::~server() { (void)close(stop_); }

bool server::open(const std::string &host, int port)
{
    // cpp-httplib's own queue holds five.
    return stop_ >= 0 && bind_to_port(host, port) && ::listen(svr_sock_, backlog) == 0;
}

void server::end()
{
    ending_ = true;
    (void)eventfd_write(stop_, 1);
    stop();
}

bool server::process_and_close_socket(socket_t socket)
{
    connection here(socket, patience);
    bool last = false;
    bool good = true;
    while (good && !last && here.next_request(stop_)) {
        understood = closing = false;
        good = process_request(here, ending_, last, prepare);
        last = last || closing;
    }
    if (good && closing) {
        here.linger();
    }
    return close(socket) == 0 && good;
}

}  // namespace example
