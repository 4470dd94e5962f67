// Commits from an event loop: begin, poll the library's descriptor, fetch the completion. C++17.
//
//   c++ -std=c++17 async.cc -lselvage -o async && ./async [configuration file [node name]]
#include <selvage.h>

#include <cstdio>
#include <memory>
#include <poll.h>
#include <stdexcept>
#include <string>

struct CloseNode { void operator()(selvage_node *node) const { selvage_node_close(node); } };
struct CloseSession { void operator()(selvage_session *session) const { selvage_session_close(session); } };
using Node = std::unique_ptr<selvage_node, CloseNode>;
using Session = std::unique_ptr<selvage_session, CloseSession>;

static void check(selvage_status status)
{
    if (status != SELVAGE_STATUS_OK) {
        char why[512];
        selvage_last_error(why, sizeof(why));
        throw std::runtime_error(std::string(selvage_status_text(status)) + ": " + why);
    }
}

// Waits for the operation that a _start form answered `status` for; a server would do other work meanwhile.
static selvage_completion finish(selvage_node *node, selvage_status status, selvage_completion now)
{
    if (status != SELVAGE_STATUS_PENDING) {
        check(status);
        return now;
    }
    pollfd ready{-1, POLLIN, 0};
    check(selvage_node_completion_fd(node, &ready.fd));
    selvage_completion done;
    while ((status = selvage_node_next_completion(node, &done)) == SELVAGE_STATUS_EMPTY) {
        poll(&ready, 1, 10000);
    }
    check(status);
    check(done.status);
    return done;
}

int main(int argc, char **argv)
try {
    selvage_node *attached;
    check(selvage_node_attach(argc > 1 ? argv[1] : nullptr, argc > 2 ? argv[2] : nullptr, 10000, &attached));
    Node node(attached);

    selvage_completion now{};
    selvage_status status = selvage_session_create_start(node.get(), "ada", 3, nullptr, &now);
    Session session(finish(node.get(), status, now).session);

    for (int i = 0; i < 3; i++) {
        check(selvage_session_incr(session.get(), "visits", SELVAGE_NUL_TERMINATED, 1, nullptr));
        status = selvage_session_commit_start(session.get(), SELVAGE_ACK_ALL, &i, &now);
        selvage_completion done = finish(node.get(), status, now);
        std::printf("commit %d: %u copies, version %u.%llu\n", *static_cast<int *>(done.user_data),
                    done.commit.copies, done.commit.version_epoch,
                    static_cast<unsigned long long>(done.commit.version_counter));
    }

    status = selvage_session_destroy_start(session.get(), nullptr, &now);
    finish(node.get(), status, now);
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
