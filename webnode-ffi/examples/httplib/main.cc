// A web server in C++ whose sessions Selvage keeps: cpp-httplib, a thread for each connection.
//
//   selvage-httplib-node --listen ADDRESS:PORT [--config FILE] [--node NAME] [--page FILE] [--threads N]
//                        [--user NAME]
//
// Built by build.sh in the repository, and where it is installed by
//
//   c++ -std=c++17 -pthread *.cc $(pkg-config --cflags --libs selvage cpp-httplib) -o selvage-httplib-node
//
// /session and what is below it is session data (api.hpp); / is the page; every page gets a session. SIGTERM,
// SIGINT and SIGQUIT end it when all requests have been answered.
#include "api.hpp"
#include "server.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <grp.h>
#include <pthread.h>
#include <pwd.h>
#include <sstream>
#include <thread>
#include <unistd.h>

namespace {

struct options {
    const char *config = nullptr;
    const char *node = nullptr;
    const char *page = nullptr;
    const char *user = nullptr;
    std::string host;
    int port = 0;
    size_t threads = 256;
};

[[noreturn]] void give_up(const std::string &why)
{
    std::fprintf(stderr, "selvage-httplib-node: %s\n", why.c_str());
    std::exit(EXIT_FAILURE);
}

void take_listen(options &all, const std::string &text)
{
    const size_t colon = text.rfind(':');
    all.port = colon == std::string::npos ? 0 : std::atoi(text.c_str() + colon + 1);
    if (all.port < 1 || all.port > 65535) {
        give_up("--listen is ADDRESS:PORT, and not " + text);
    }
    all.host = text.substr(0, colon);
}

options parse(int argc, char **argv)
{
    options all;
    for (int at = 1; at + 1 < argc; at += 2) {
        const std::string key = argv[at];
        const char *value = argv[at + 1];
        if (key == "--config") {
            all.config = value;
        } else if (key == "--node") {
            all.node = value;
        } else if (key == "--page") {
            all.page = value;
        } else if (key == "--user") {
            all.user = value;
        } else if (key == "--listen") {
            take_listen(all, value);
        } else if (key == "--threads" && std::atoi(value) > 0) {
            all.threads = static_cast<size_t>(std::atoi(value));
        } else {
            give_up("what is " + key + " " + value + "?");
        }
    }
    if (argc % 2 == 0 || all.port == 0) {
        give_up("usage: --listen ADDRESS:PORT [--config FILE] [--node NAME] [--page FILE] [--threads N] "
                "[--user NAME]");
    }
    return all;
}

// Gives up root for this user, with all of its groups. Before any thread is started.
void become(const char *user)
{
    const passwd *entry = getpwnam(user);
    if (entry == nullptr) {
        give_up(std::string("no user is called ") + user);
    }
    if (initgroups(user, entry->pw_gid) != 0 || setgid(entry->pw_gid) != 0 || setuid(entry->pw_uid) != 0) {
        give_up(std::string("cannot become ") + user + ": " + std::strerror(errno));
    }
}

std::string read_page(const char *path)
{
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) {
        give_up(std::string("cannot read ") + path);
    }
    return text.str();
}

void answer_page(const std::string &page, const httplib::Request &request, httplib::Response &response)
{
    if (request.method != "GET" && request.method != "HEAD") {
        response.status = 405;
        response.set_header("Allow", "GET, HEAD");
    } else if ((request.path == "/" || request.path == "/index.html") && !page.empty()) {
        response.status = 200;
        response.set_content(page, "text/html");
    } else {
        response.status = 404;
        response.set_content("not found\n", "text/plain; charset=utf-8");
    }
}

}  // namespace

int main(int argc, char **argv)
{
    const options all = parse(argc, argv);
    const std::string page = all.page != nullptr ? read_page(all.page) : std::string();

    // All threads leave the signals to the one that waits for them.
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGTERM, SIGINT, SIGQUIT}) {
        sigaddset(&signals, number);
    }
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);

    const example::api *api = nullptr;
    example::server server(
        [&](const auto &request, auto &response, const httplib::ContentReader *body) {
            if (api->is_for(request)) {
                api->answer(request, response, body);
            } else if (api->gives_session(request, response)) {
                answer_page(page, request, response);
            }
        },
        all.threads);
    if (!server.open(all.host, all.port)) {
        const std::string address = all.host + ":" + std::to_string(all.port);
        give_up("cannot listen on " + address + ": " + std::strerror(errno));
    }
    if (all.user != nullptr) {
        become(all.user);
    }

    // Without waiting: until the node has joined, requests wait for that, bounded, and then are answered 503.
    const auto node = selvage::node::attach(all.config, all.node, std::chrono::milliseconds(0));
    const auto info = node->describe();
    if (!node || !info) {
        give_up(std::string((node ? info.error() : node.error()).text()));
    }
    const example::api sessions(*node, *info, "/session");
    api = &sessions;

    std::thread serving([&] { (void)server.serve(); });
    int number = 0;
    (void)sigwait(&signals, &number);
    server.end();
    serving.join();
    return EXIT_SUCCESS;
}
