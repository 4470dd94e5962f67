/*
 * A web server's request in small: attach, create a session, set, commit, open it again, read, destroy.
 *
 *   cc session.c -lselvage -o session && ./session [configuration file [node name]]
 */
#include <selvage.h>
#include <stdio.h>
#include <stdlib.h>

static void check(selvage_status status, const char *what)
{
    char why[512];

    if (status == SELVAGE_STATUS_OK) {
        return;
    }
    selvage_last_error(why, sizeof(why));
    fprintf(stderr, "%s: %s (%s)\n", what, selvage_status_text(status), why);
    exit(EXIT_FAILURE);
}

int main(int argc, char **argv)
{
    selvage_node *node;
    selvage_session *session;
    selvage_session_info info;
    selvage_commit commit;
    selvage_value user, visits;
    const char *json, *cookie;
    size_t json_len, cookie_len;

    /* Once per process, after fork. */
    check(selvage_node_attach(argc > 1 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL, 10000, &node), "attach");

    /* A request without a cookie: a new session. Nobody sees it before it is committed. */
    check(selvage_session_create(node, NULL, 0, &session), "create");
    check(selvage_session_set_text(session, "user", SELVAGE_NUL_TERMINATED, "ada", 3), "set user");
    check(selvage_session_incr(session, "visits", SELVAGE_NUL_TERMINATED, 1, NULL), "count");
    check(selvage_session_commit(session, SELVAGE_ACK_ALL, &commit), "commit");
    check(selvage_cookie_set(session, &cookie, &cookie_len), "cookie");
    printf("copies: %u\nSet-Cookie: %.*s\n", commit.copies, (int) cookie_len, cookie);
    check(selvage_session_describe(session, &info), "describe");
    check(selvage_session_close(session), "close");

    /* The next request, with the cookie (selvage_cookie_read finds it in the Cookie header). */
    check(selvage_session_open(node, &info.cookie, SELVAGE_OPEN_EXCLUSIVE, &session, NULL), "open");
    check(selvage_session_read(session, "user", SELVAGE_NUL_TERMINATED, &user), "read user");
    check(selvage_session_read(session, "visits", SELVAGE_NUL_TERMINATED, &visits), "read visits");
    printf("%.*s came %lld times\n", (int) user.bytes_len, (const char *) user.bytes,
           (long long) visits.integer);
    check(selvage_session_json(session, &json, &json_len), "json");
    printf("%.*s\n", (int) json_len, json);

    /* Logging out. */
    check(selvage_session_destroy(session), "destroy");
    check(selvage_session_close(session), "close");
    check(selvage_node_close(node), "detach");
    return EXIT_SUCCESS;
}
