/*
 * Makes every operation of libselvage end a little later that would end at once, so that tests on one host go
 * the ways that a web server goes when session servers are far away. It is preloaded into nginx; what happens
 * is the library's own doing, only the news of it comes by a completion.
 *
 * A session whose operation is under way may only be closed: anything else ends the process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <selvage.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define LATE_NS 3000000

typedef struct news {
    struct news *next;
    int64_t due_ns;
    /* The session that is lent to the operation, NULL for open and create and once it is closed. */
    const selvage_session *lent;
    selvage_completion done;
} news;

static news *first;
static int timer = -1;
static int both = -1;

/* The library's own function of that name. */
static void *
real(const char *name)
{
    void *library = dlopen("libselvage.so.0", RTLD_NOLOAD | RTLD_LAZY);
    void *found = library != NULL ? dlsym(library, name) : NULL;

    if (found == NULL) {
        abort();
    }
    return found;
}

#define REAL(name) ((__typeof__(&name))real(#name))

static int64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
arm(void)
{
    struct itimerspec when = { { 0, 0 }, { 0, 0 } };

    if (first != NULL) {
        when.it_value.tv_sec = first->due_ns / 1000000000;
        when.it_value.tv_nsec = first->due_ns % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Keeps how an operation ended for later. Failures are told at once, for their text is the thread's last. */
static selvage_status
later(selvage_status status, selvage_completion *done, void *user_data, const selvage_session *lent)
{
    news **end = &first;
    news *one;

    if (status == SELVAGE_STATUS_PENDING || status >= SELVAGE_STATUS_NULL || timer < 0) {
        return status;
    }
    one = calloc(1, sizeof(news));
    if (one == NULL) {
        abort();
    }
    one->due_ns = now_ns() + LATE_NS;
    one->lent = lent;
    one->done = *done;
    one->done.user_data = user_data;
    one->done.status = status;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = one;
    arm();
    return SELVAGE_STATUS_PENDING;
}

/* Whether a session asks for the news that a regeneration took too long, which then has happened all the
 * same: so it ends when a server dies after the new id was acked, until that server has left the view. */
static int
wants_timeout(const selvage_session *session)
{
    selvage_value value;

    return REAL(selvage_session_read)(session, "late", 4, &value) == SELVAGE_STATUS_OK;
}

static void
at_rest(const selvage_session *session)
{
    news *one;

    for (one = first; one != NULL; one = one->next) {
        if (session != NULL && one->lent == session) {
            abort();
        }
    }
}

selvage_status
selvage_node_completion_fd(const selvage_node *node, int *fd)
{
    struct epoll_event event = { .events = EPOLLIN };
    selvage_status status = REAL(selvage_node_completion_fd)(node, fd);

    if (status != SELVAGE_STATUS_OK || both >= 0) {
        return status;
    }
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    both = epoll_create1(EPOLL_CLOEXEC);
    if (timer < 0 || both < 0 || epoll_ctl(both, EPOLL_CTL_ADD, *fd, &event) != 0
        || epoll_ctl(both, EPOLL_CTL_ADD, timer, &event) != 0)
    {
        abort();
    }
    *fd = both;
    return status;
}

selvage_status
selvage_node_next_completion(const selvage_node *node, selvage_completion *done)
{
    news *one = first;
    uint64_t fired;

    if (one != NULL && one->due_ns <= now_ns()) {
        first = one->next;
        *done = one->done;
        free(one);
        return SELVAGE_STATUS_OK;
    }
    if (timer >= 0) {
        (void)!read(timer, &fired, sizeof(fired));
        arm();
    }
    return REAL(selvage_node_next_completion)(node, done);
}

selvage_status
selvage_node_cancel(const selvage_node *node, const void *user_data)
{
    news **at, *one;

    for (at = &first; *at != NULL; at = &(*at)->next) {
        one = *at;
        if (one->done.user_data == user_data) {
            if (one->done.operation != SELVAGE_OPERATION_OPEN
                && one->done.operation != SELVAGE_OPERATION_CREATE)
            {
                return SELVAGE_STATUS_MISSING;
            }
            *at = one->next;
            (void)REAL(selvage_session_close)(one->done.session);
            free(one);
            return SELVAGE_STATUS_OK;
        }
    }
    return REAL(selvage_node_cancel)(node, user_data);
}

selvage_status
selvage_session_close(selvage_session *session)
{
    news *one;

    for (one = first; one != NULL; one = one->next) {
        if (one->lent == session) {
            one->lent = NULL;
        }
    }
    return REAL(selvage_session_close)(session);
}

selvage_status
selvage_session_open_start(const selvage_node *node, const selvage_cookie *cookie, uint32_t mode,
                           void *user_data, selvage_completion *now)
{
    selvage_completion done = *now;
    selvage_status status = REAL(selvage_session_open_start)(node, cookie, mode, user_data, &done);

    done.operation = SELVAGE_OPERATION_OPEN;
    return later(status, &done, user_data, NULL);
}

selvage_status
selvage_session_create_start(const selvage_node *node, const char *owner, size_t owner_len, void *user_data,
                             selvage_completion *now)
{
    selvage_completion done = *now;
    selvage_status status = REAL(selvage_session_create_start)(node, owner, owner_len, user_data, &done);

    done.operation = SELVAGE_OPERATION_CREATE;
    return later(status, &done, user_data, NULL);
}

selvage_status
selvage_session_commit_start(selvage_session *session, uint32_t ack, void *user_data, selvage_completion *now)
{
    selvage_completion done = *now;
    selvage_status status;

    at_rest(session);
    status = REAL(selvage_session_commit_start)(session, ack, user_data, &done);
    return later(status, &done, user_data, session);
}

selvage_status
selvage_session_destroy_start(selvage_session *session, void *user_data, selvage_completion *now)
{
    selvage_completion done = *now;
    selvage_status status;

    at_rest(session);
    status = REAL(selvage_session_destroy_start)(session, user_data, &done);
    return later(status, &done, user_data, session);
}

selvage_status
selvage_session_regenerate_start(selvage_session *session, void *user_data, selvage_completion *now)
{
    selvage_completion done = *now;
    selvage_status status;

    at_rest(session);
    status = REAL(selvage_session_regenerate_start)(session, user_data, &done);
    if (status == SELVAGE_STATUS_OK && wants_timeout(session)) {
        return SELVAGE_STATUS_TIMEOUT;
    }
    return later(status, &done, user_data, session);
}

selvage_status
selvage_session_describe(const selvage_session *session, selvage_session_info *info)
{
    at_rest(session);
    return REAL(selvage_session_describe)(session, info);
}
