/* Logs a user out everywhere, waiting and not waiting, and says what came of it. */
#include <poll.h>
#include <selvage.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(selvage_status status, const char *what)
{
    char text[256];
    if (status == SELVAGE_STATUS_OK)
        return;
    selvage_last_error(text, sizeof text);
    fprintf(stderr, "%s: %s: %s\n", what, selvage_status_text(status), text);
    exit(EXIT_FAILURE);
}

static void make(const selvage_node *node, const char *owner, int count)
{
    for (; count > 0; count--) {
        selvage_session *session;
        selvage_commit commit;
        check(selvage_session_create(node, owner, SELVAGE_NUL_TERMINATED, &session), "create");
        check(selvage_session_commit(session, SELVAGE_ACK_ALL, &commit), "commit");
        check(selvage_session_close(session), "close");
    }
}

int main(int argc, char **argv)
{
    selvage_node *node;
    selvage_completion end;
    struct pollfd wait = {.events = POLLIN};
    uint64_t count = 99;
    char text[256];
    int tag = 7;

    check(selvage_node_attach(argc > 1 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL, 10000, &node), "attach");
    make(node, "ann", 3);
    make(node, "bob", 1);
    check(selvage_node_destroy_owner(node, "ann", 3, &count), "destroy ann");
    printf("destroyed %llu of ann\n", (unsigned long long) count);
    check(selvage_node_destroy_owner(node, "ann", SELVAGE_NUL_TERMINATED, NULL), "destroy ann again");

    make(node, "ann", 2);
    if (selvage_node_destroy_owner_start(node, "ann", 3, &tag, &end) != SELVAGE_STATUS_PENDING)
        return EXIT_FAILURE;
    check(selvage_node_completion_fd(node, &wait.fd), "descriptor");
    while (selvage_node_next_completion(node, &end) == SELVAGE_STATUS_EMPTY)
        poll(&wait, 1, 10000);
    check(end.status, "destroy ann in the background");
    if (end.user_data != &tag || end.operation != SELVAGE_OPERATION_DESTROY_OWNER || end.session != NULL)
        return EXIT_FAILURE;
    printf("destroyed %llu of ann in the background\n", (unsigned long long) end.count);

    count = 99;
    printf("nobody: %d, ", (int) selvage_node_destroy_owner(node, "", 0, &count));
    selvage_last_error(text, sizeof text);
    printf("%s, count %llu\n", text, (unsigned long long) count);
    printf("NULL: %d\n", (int) selvage_node_destroy_owner(node, NULL, 0, &count));
    check(selvage_node_destroy_owner(node, "bob", 3, &count), "destroy bob");
    printf("destroyed %llu of bob\n", (unsigned long long) count);
    check(selvage_node_close(node), "detach");
    return EXIT_SUCCESS;
}
