/*
 * Forks, threads and many processes on one node: every acked increment of one session is counted once.
 *
 *   crowd CONFIG NODE PROCESSES THREADS ROUNDS
 *
 * The parent attaches before it forks, so that every child inherits handles that it must not use.
 */
#include <selvage.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NTS SELVAGE_NUL_TERMINATED

static const char *config_path, *node_name;
static int processes, threads, rounds;

static void fail(const char *what, selvage_status status)
{
    char why[512];

    selvage_last_error(why, sizeof(why));
    fprintf(stderr, "pid %d: %s: %d %s (%s)\n", (int) getpid(), what, (int) status,
            selvage_status_text(status), why);
    _exit(EXIT_FAILURE);
}

static void expect(selvage_status status, selvage_status wanted, const char *what)
{
    if (status != wanted) {
        fail(what, status);
    }
}

struct work {
    selvage_node *node;
    selvage_cookie cookie;
};

static void *count(void *argument)
{
    struct work *work = argument;
    selvage_session *session;
    selvage_commit commit;
    int i;

    for (i = 0; i < rounds; i++) {
        expect(selvage_session_open(work->node, &work->cookie, SELVAGE_OPEN_EXCLUSIVE, &session, NULL),
               SELVAGE_STATUS_OK, "open");
        expect(selvage_session_incr(session, "n", NTS, 1, NULL), SELVAGE_STATUS_OK, "incr");
        expect(selvage_session_commit(session, SELVAGE_ACK_ALL, &commit), SELVAGE_STATUS_OK, "commit");
        selvage_session_close(session);
    }
    return NULL;
}

/* One completion, waited for; user_data must be the one of the only operation under way. */
static selvage_completion finish(selvage_node *node, selvage_status status, selvage_completion now,
    void *user_data)
{
    struct pollfd ready = { -1, POLLIN, 0 };
    selvage_completion done;

    if (status != SELVAGE_STATUS_PENDING) {
        expect(status, SELVAGE_STATUS_OK, "start");
        return now;
    }
    expect(selvage_node_completion_fd(node, &ready.fd), SELVAGE_STATUS_OK, "completion_fd");
    while ((status = selvage_node_next_completion(node, &done)) == SELVAGE_STATUS_EMPTY) {
        if (poll(&ready, 1, 30000) != 1) {
            fail("poll", SELVAGE_STATUS_TIMEOUT);
        }
    }
    expect(status, SELVAGE_STATUS_OK, "next_completion");
    expect(done.status, SELVAGE_STATUS_OK, "completion");
    if (done.user_data != user_data) {
        fail("a completion of somebody else", SELVAGE_STATUS_INTERNAL);
    }
    return done;
}

/* As count, through the asynchronous forms; some sessions are closed while their commit is under way. */
static void *count_async(void *argument)
{
    struct work *work = argument;
    selvage_session *session;
    selvage_completion now;
    selvage_status status;
    selvage_value value;
    int i;

    for (i = 0; i < rounds; i++) {
        memset(&now, 0, sizeof(now));
        status = selvage_session_open_start(work->node, &work->cookie, SELVAGE_OPEN_EXCLUSIVE, &i, &now);
        session = finish(work->node, status, now, &i).session;
        expect(selvage_session_incr(session, "n", NTS, 1, NULL), SELVAGE_STATUS_OK, "incr");
        status = selvage_session_commit_start(session, SELVAGE_ACK_ALL, work, &now);
        if (status == SELVAGE_STATUS_PENDING) {
            expect(selvage_session_read(session, "n", NTS, &value), SELVAGE_STATUS_UNDERWAY,
                   "read while under way");
        }
        if (i % 2 == 0) {
            selvage_session_close(session);
            session = NULL;
        }
        finish(work->node, status, now, work);
        selvage_session_close(session);
    }
    return NULL;
}

static void child(selvage_node *inherited, selvage_session *inherited_session, selvage_cookie cookie)
{
    pthread_t ids[64];
    selvage_node_info info;
    selvage_value value;
    struct work work;
    int i, fd;

    /* Inherited handles answer, and closing them disturbs nobody. */
    expect(selvage_node_describe(inherited, &info), SELVAGE_STATUS_FORKED, "describe in a child");
    expect(selvage_node_completion_fd(inherited, &fd), SELVAGE_STATUS_FORKED, "completion_fd in a child");
    expect(selvage_session_read(inherited_session, "n", NTS, &value), SELVAGE_STATUS_FORKED,
           "read in a child");
    expect(selvage_session_commit(inherited_session, SELVAGE_ACK_ALL, NULL), SELVAGE_STATUS_FORKED,
           "commit in a child");
    expect(selvage_session_close(inherited_session), SELVAGE_STATUS_OK, "close in a child");
    expect(selvage_node_close(inherited), SELVAGE_STATUS_OK, "detach in a child");

    expect(selvage_node_attach(config_path, node_name, 30000, &work.node), SELVAGE_STATUS_OK,
           "attach in a child");
    work.cookie = cookie;
    for (i = 0; i < threads; i++) {
        pthread_create(&ids[i], NULL, count, &work);
    }
    count_async(&work);
    for (i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    expect(selvage_node_close(work.node), SELVAGE_STATUS_OK, "detach");
    exit(EXIT_SUCCESS);
}

int main(int argc, char **argv)
{
    selvage_session *session, *held;
    selvage_session_info info;
    selvage_value value;
    selvage_node *node;
    long long expected;
    int i, status, failed = 0;

    if (argc != 6 || (threads = atoi(argv[4])) > 64) {
        return EXIT_FAILURE;
    }
    config_path = argv[1];
    node_name = argv[2];
    processes = atoi(argv[3]);
    rounds = atoi(argv[5]);

    expect(selvage_node_attach(config_path, node_name, 30000, &node), SELVAGE_STATUS_OK, "attach");
    expect(selvage_session_create(node, NULL, 0, &session), SELVAGE_STATUS_OK, "create");
    expect(selvage_session_commit(session, SELVAGE_ACK_ALL, NULL), SELVAGE_STATUS_OK, "first commit");
    expect(selvage_session_describe(session, &info), SELVAGE_STATUS_OK, "describe");
    selvage_session_close(session);

    /* A locked session of the parent's: no child's end or close may release it. */
    expect(selvage_session_create(node, NULL, 0, &held), SELVAGE_STATUS_OK, "create");
    expect(selvage_session_set_i64(held, "n", NTS, 7), SELVAGE_STATUS_OK, "set");
    for (i = 0; i < processes; i++) {
        if (fork() == 0) {
            child(node, held, info.cookie);
        }
    }
    for (i = 0; i < processes; i++) {
        if (wait(&status) < 0 || status != 0) {
            failed++;
        }
    }
    expect(selvage_session_commit(held, SELVAGE_ACK_ALL, NULL), SELVAGE_STATUS_OK, "commit of what was held");
    expect(selvage_session_destroy(held), SELVAGE_STATUS_OK, "destroy");
    expect(selvage_session_read(held, "n", NTS, &value), SELVAGE_STATUS_GONE, "read after destroy");
    selvage_session_close(held);

    expect(selvage_session_open(node, &info.cookie, SELVAGE_OPEN_READ_ONLY, &session, NULL),
           SELVAGE_STATUS_OK, "open read-only");
    expect(selvage_session_set_i64(session, "n", NTS, 0), SELVAGE_STATUS_READ_ONLY, "set on read-only");
    expect(selvage_session_read(session, "n", NTS, &value), SELVAGE_STATUS_OK, "read");
    expected = (long long) processes * (threads + 1) * rounds;
    printf("%lld of %lld increments, %d processes failed\n", (long long) value.integer, expected, failed);
    selvage_session_close(session);
    selvage_node_close(node);
    return failed == 0 && value.integer == expected ? EXIT_SUCCESS : EXIT_FAILURE;
}
