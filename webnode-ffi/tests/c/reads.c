/*
 * A cached attribute's read neither allocates nor enters the kernel.
 *
 * The reading thread puts itself under strict seccomp, where any system call but read, write and the thread's
 * exit kills it; allocations are counted by the malloc that this program puts in front of the C library's.
 */
#define _GNU_SOURCE
#include <selvage.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NTS SELVAGE_NUL_TERMINATED
#define READS 10000

extern void *__libc_malloc(size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_calloc(size_t count, size_t size);

static _Thread_local long allocations;

void *malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}

void *realloc(void *old, size_t size)
{
    allocations++;
    return __libc_realloc(old, size);
}

void *calloc(size_t count, size_t size)
{
    allocations++;
    return __libc_calloc(count, size);
}

static selvage_session *session;
static int said[2];

/* Says 'n' if all was well, another letter otherwise, and nothing if the kernel has killed the thread. */
static char read_all(void)
{
    selvage_value value;
    const char *name;
    size_t name_len;
    int i;

    for (i = 0; i < READS; i++) {
        if (selvage_session_read(session, "n", NTS, &value) != SELVAGE_STATUS_OK || value.integer != 7) {
            return 'i';
        }
        if (selvage_session_read(session, "text", 4, &value) != SELVAGE_STATUS_OK
            || value.bytes_len != 5 || memcmp(value.bytes, "hello", 5) != 0)
        {
            return 't';
        }
        if (selvage_session_read(session, "none", 4, &value) != SELVAGE_STATUS_MISSING) {
            return 'm';
        }
        if (selvage_session_read_at(session, 1, &name, &name_len, &value) != SELVAGE_STATUS_OK
            || name_len != 4)
        {
            return 'a';
        }
    }
    return allocations == 0 ? 'n' : 'l';
}

static void *reader(void *nothing)
{
    char letter;

    (void) nothing;
    allocations = 0;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        letter = 's';
    } else {
        letter = read_all();
    }
    if (write(said[1], &letter, 1) != 1) {
        letter = 'w';
    }
    syscall(SYS_exit, 0);
    return NULL;
}

static void expect(selvage_status status, const char *what)
{
    char why[512];

    if (status != SELVAGE_STATUS_OK) {
        selvage_last_error(why, sizeof(why));
        fprintf(stderr, "%s: %s (%s)\n", what, selvage_status_text(status), why);
        exit(EXIT_FAILURE);
    }
}

int main(int argc, char **argv)
{
    struct pollfd answer = { -1, POLLIN, 0 };
    selvage_session_info info;
    selvage_node *node;
    pthread_t thread;
    char letter = 'k';

    if (argc != 3 || pipe(said) != 0) {
        return EXIT_FAILURE;
    }
    expect(selvage_node_attach(argv[1], argv[2], 10000, &node), "attach");
    expect(selvage_session_create(node, NULL, 0, &session), "create");
    expect(selvage_session_set_i64(session, "n", NTS, 7), "set");
    expect(selvage_session_set_text(session, "text", NTS, "hello", NTS), "set");
    expect(selvage_session_commit(session, SELVAGE_ACK_ALL, NULL), "commit");
    expect(selvage_session_describe(session, &info), "describe");
    selvage_session_close(session);
    expect(selvage_session_open(node, &info.cookie, SELVAGE_OPEN_READ_ONLY, &session, NULL), "open");

    pthread_create(&thread, NULL, reader, NULL);
    answer.fd = said[0];
    if (poll(&answer, 1, 20000) == 1 && read(said[0], &letter, 1) == 1 && letter == 'n') {
        printf("%d reads: no allocation, no system call\n", 4 * READS);
    } else {
        fprintf(stderr, "the reader said %c\n", letter);
    }
    selvage_session_close(session);
    selvage_node_close(node);
    return letter == 'n' ? EXIT_SUCCESS : EXIT_FAILURE;
}
