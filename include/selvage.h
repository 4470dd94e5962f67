/*
 * Selvage: sessions of web servers in local shared memory, every commit pushed to session servers.
 *
 * RULES
 *
 * Names.      selvage_<object>_<verb>. Objects: node (this process's part in a web node), session, cookie.
 * Status.     A function that can fail returns a selvage_status. 0 is success, 1 to 99 an expected outcome
 *             (missing, elsewhere, pending), 100 to 199 a mistake of the caller, 200 to 299 a state that
 *             may pass (try again later), 300 to 399 the environment, 900 and up a bug. Numbers never
 *             change their meaning; later versions may add some, so treat an unknown number by its range.
 *             selvage_status_text() takes any integer.
 * Errors.     After a status of 100 or more selvage_last_error() has one sentence for a person, kept per
 *             thread: what, where and the limit. Decide by the number, never by the text. A failed call
 *             changed nothing.
 * Arguments.  Inputs (const) come first, outputs last; nothing is both. Pointers must not be NULL unless
 *             the function says so: NULL is checked, always, and answers SELVAGE_STATUS_NULL. Any other bad
 *             pointer is undefined. Buffers and texts are followed by their length in bytes;
 *             SELVAGE_NUL_TERMINATED as a length means "up to the NUL". Constants come as uint32_t; an
 *             unknown one answers SELVAGE_STATUS_INVALID.
 * Outputs.    Written only with the status that the function names (SELVAGE_STATUS_OK where it names none),
 *             untouched otherwise. Structures have fixed sizes; reserved fields are zero.
 * Ownership.  A handle is the caller's from the call that wrote it until its _close. Closing NULL is fine.
 *             Memory that a function lends (const pointers written to outputs) stays the handle's and is
 *             valid until the next call on that handle that is not one of describe, read, read_at - or as
 *             the function says.
 * Threads.    A node handle may be used by any thread at any time. A session handle may move between
 *             threads; one thread at a time uses it. Last errors are per thread.
 * Processes.  Attach after fork, in each process that uses sessions. In a forked child every function on an
 *             inherited handle answers SELVAGE_STATUS_FORKED, except _close, which does nothing.
 * Blocking.   Only attach, and the forms of create, open, commit, destroy and regenerate without _start,
 *             may wait; each wait is bounded by [session] wait_ms of the configuration (attach: by its
 *             argument).
 * Completion. A _start form either finishes at once and fills *now, or answers SELVAGE_STATUS_PENDING and
 *             leaves *now untouched; then exactly one completion with the same user_data comes through
 *             selvage_node_next_completion(), on any node handle of the process, after the descriptor of
 *             selvage_node_completion_fd() became readable. Until then only selvage_session_close() may be
 *             called on that session; the operation goes on and its completion still comes.
 * Signals.    The library installs no handlers, prints nothing and never ends the process.
 */

#ifndef SELVAGE_H
#define SELVAGE_H

/* Made by cbindgen from webnode-ffi/src (SELVAGE_BLESS=1 cargo test -p selvage-webnode-ffi). Do not edit. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// As the length of a text: up to its NUL.
#define SELVAGE_NUL_TERMINATED ((size_t)-1)

// Open for reading and changing: the session's lock is held until the handle is closed.
#define SELVAGE_OPEN_EXCLUSIVE 1

// Open for reading the version that is current now; never waits for a lock.
#define SELVAGE_OPEN_READ_ONLY 2

// Open for reading the version that is current now and for changing; never waits for a lock. Changes are
// collected in the handle; a commit takes the lock for itself and applies them (set, removed, added to, the
// owner) to the version that is current then, which the handle sees from there on. So requests that change
// different attributes keep all changes, and all increments count; of two that set one attribute the later
// commit counts. The same is true of destroy and regenerate.
#define SELVAGE_OPEN_UNLOCKED 3

// Any bytes.
#define SELVAGE_TYPE_BYTES 1

// UTF-8 text.
#define SELVAGE_TYPE_TEXT 2

// A signed 64-bit integer.
#define SELVAGE_TYPE_I64 3

// A 64-bit floating-point number.
#define SELVAGE_TYPE_F64 4

// A truth value.
#define SELVAGE_TYPE_BOOL 5

// Wait for every server of the session's placement that is up.
#define SELVAGE_ACK_ALL 1

// Wait for one of them.
#define SELVAGE_ACK_ONE 2

// Wait for none: copies are made as far as that needs no waiting, and later in the background.
#define SELVAGE_ACK_NONE 3

// A completion of selvage_session_open_start.
#define SELVAGE_OPERATION_OPEN 1

// A completion of selvage_session_create_start.
#define SELVAGE_OPERATION_CREATE 2

// A completion of selvage_session_commit_start.
#define SELVAGE_OPERATION_COMMIT 3

// A completion of selvage_session_destroy_start.
#define SELVAGE_OPERATION_DESTROY 4

// A completion of selvage_session_regenerate_start.
#define SELVAGE_OPERATION_REGENERATE 5

// A completion of selvage_node_destroy_owner_start.
#define SELVAGE_OPERATION_DESTROY_OWNER 6

// The commit reached every copy that is configured.
#define SELVAGE_SHORT_NOT 0

// The node has no valid mandate: no director was reached lately.
#define SELVAGE_SHORT_NO_MANDATE 1

// Fewer session servers are up or reachable.
#define SELVAGE_SHORT_SERVERS 2

// A lease has no room for this session.
#define SELVAGE_SHORT_LEASE_FULL 3

// The caller did not want to wait for them.
#define SELVAGE_SHORT_NOT_AWAITED 4

// Result of every function that can fail. 0 is success; see the ranges at the head of this file.
enum selvage_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Done.
    SELVAGE_STATUS_OK = 0,
    // Begun; exactly one completion will come.
    SELVAGE_STATUS_PENDING = 1,
    // No such session or attribute.
    SELVAGE_STATUS_MISSING = 2,
    // Another live node hosts the session.
    SELVAGE_STATUS_ELSEWHERE = 3,
    // The attribute exists and has another type.
    SELVAGE_STATUS_WRONG_TYPE = 4,
    // No completion is waiting.
    SELVAGE_STATUS_EMPTY = 5,
    // A pointer that must not be NULL is NULL.
    SELVAGE_STATUS_NULL = 100,
    // An argument or a setting is outside its documented range.
    SELVAGE_STATUS_INVALID = 101,
    // An attribute or a session is over its limit; nothing was changed.
    SELVAGE_STATUS_TOO_LARGE = 102,
    // The handle belongs to another process: it was inherited over fork.
    SELVAGE_STATUS_FORKED = 103,
    // The session was opened read-only.
    SELVAGE_STATUS_READ_ONLY = 104,
    // An operation that was begun on this session is not complete yet.
    SELVAGE_STATUS_UNDERWAY = 105,
    // The cache or a lease has no room; nothing that lives was evicted.
    SELVAGE_STATUS_FULL = 200,
    // Too many requests wait for this session already.
    SELVAGE_STATUS_BUSY = 201,
    // The wait was longer than its bound.
    SELVAGE_STATUS_TIMEOUT = 202,
    // The node's incarnation is over; the session may be hosted by another node now.
    SELVAGE_STATUS_OWNERSHIP_LOST = 203,
    // The session's lock was held longer than allowed and was given to the next.
    SELVAGE_STATUS_LOCK_LOST = 204,
    // The session is gone: destroyed or expired.
    SELVAGE_STATUS_GONE = 205,
    // The node has not joined the cluster yet.
    SELVAGE_STATUS_NOT_READY = 206,
    // The cluster cannot answer yet: a change of the view is under way.
    SELVAGE_STATUS_NOT_YET = 207,
    // The director or a session server cannot be reached.
    SELVAGE_STATUS_UNREACHABLE = 208,
    // This user or role may not do this.
    SELVAGE_STATUS_DENIED = 300,
    // Somebody else has this name, lock or role.
    SELVAGE_STATUS_CONFLICT = 301,
    // The operating system refused.
    SELVAGE_STATUS_OS = 302,
    // Layout or protocol versions do not fit together.
    SELVAGE_STATUS_VERSION_MISMATCH = 303,
    // A memory segment is smaller than it must be.
    SELVAGE_STATUS_TOO_SMALL = 304,
    // Bytes from another party failed a check.
    SELVAGE_STATUS_CORRUPT = 305,
    // A bug in the library; the operation may have happened in part.
    SELVAGE_STATUS_INTERNAL = 900,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum selvage_status selvage_status;
#else
typedef int32_t selvage_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// This process's attachment to its web node.
typedef struct selvage_node selvage_node;

// An open session.
typedef struct selvage_session selvage_session;

// The tag of a node's incarnation, as it stands in cookies and in Selvage-Elsewhere headers.
typedef struct {
    // 13 characters and NULs.
    char text[16];
} selvage_tag;

// What selvage_node_describe answers.
typedef struct {
    // The node's configured name, ended by a NUL.
    char name[40];
    // The tag of the node's present incarnation; an empty text while it has not joined the cluster.
    selvage_tag tag;
    // Largest archive of a session, bytes.
    uint64_t archive_bytes_max;
    // The node has joined the cluster.
    bool joined;
    // Zero.
    uint8_t reserved[7];
} selvage_node_info;

// What a valid session cookie says.
typedef struct {
    // The session's id.
    uint8_t id[16];
    // The node incarnation that hosted it when the cookie was made.
    uint64_t host;
} selvage_cookie;

// What a commit reached.
typedef struct {
    // Servers that have acked this version.
    uint32_t copies;
    // Why these are fewer than configured: one of SELVAGE_SHORT_*. Copies follow by themselves.
    uint32_t shortfall;
    // Ownership epoch: the version's higher part.
    uint32_t version_epoch;
    // Zero.
    uint32_t reserved;
    // Commits and touches of one owner: the version's lower part.
    uint64_t version_counter;
} selvage_commit;

// How an operation ended.
typedef struct {
    // What the caller gave at the start.
    void *user_data;
    // The new handle of an open or create that ended OK, NULL otherwise. The caller's until
    // selvage_session_close.
    selvage_session *session;
    // What the form without _start would have answered. The text of a failure is selvage_last_error's.
    selvage_status status;
    // Which operation: one of SELVAGE_OPERATION_*.
    uint32_t operation;
    // What a commit that ended OK reached, zero otherwise.
    selvage_commit commit;
    // The host of a session for which an open ended ELSEWHERE, empty otherwise.
    selvage_tag elsewhere;
    // Sessions that a destroy_owner that ended OK has destroyed, zero otherwise.
    uint64_t count;
} selvage_completion;

// What selvage_session_describe answers.
typedef struct {
    // The id as text, ended by a NUL.
    char id[32];
    // What the session's cookie on this host says.
    selvage_cookie cookie;
    // Ownership epoch: the version's higher part.
    uint32_t version_epoch;
    // Servers that hold the version that this handle sees.
    uint32_t copies;
    // Commits and touches of one owner: the version's lower part.
    uint64_t version_counter;
    // When it was created, Unix ms.
    uint64_t created_ms;
    // When it expires unless it is used, Unix ms.
    uint64_t expiry_ms;
    // Number of attributes, changes included.
    uint32_t attribute_count;
    // Opened read-only.
    bool read_only;
    // The browser must be given the cookie: the session is new, was adopted or has a new id.
    bool needs_cookie;
    // Zero.
    uint8_t reserved[2];
} selvage_session_info;

// An attribute's value where it lies. Fields that the type does not use are zero.
typedef struct {
    // One of SELVAGE_TYPE_*.
    uint32_t kind;
    // Of a truth value.
    bool truth;
    // Zero.
    uint8_t reserved[3];
    // Of an integer.
    int64_t integer;
    // Of a floating-point number.
    double number;
    // Of bytes and text; a NUL does not end it. Lent by the session.
    const uint8_t *bytes;
    // Length of bytes and text, bytes.
    size_t bytes_len;
} selvage_value;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// A short English text for a status; never NULL, for any integer.
//
// Thread rule: any. Blocking: never. Ownership: the text is static. Errors: none.
const char *selvage_status_text(int status);

// Copies the text of the calling thread's last failure into `text`, cut to `text_len - 1` bytes and always
// ended by a NUL (unless `text_len` is 0). Returns the whole text's length without the NUL, as snprintf
// does.
//
// Thread rule: any; the text is the calling thread's own. Blocking: never. Ownership: the caller's buffer.
// Errors: none; a NULL `text` is a buffer of length 0. Only a failed call (a status of 100 and up) changes
// the text.
size_t selvage_last_error(char *text, size_t text_len);

// The library's version, as "major.minor.patch".
//
// Thread rule: any. Blocking: never. Ownership: the text is static. Errors: none.
const char *selvage_version(void);

// Reads and checks a configuration and whether it names the node, without attaching: for a server's own
// configuration check. config_path may be NULL: SELVAGE_CONFIG, or else the default path. node_name may be
// NULL: SELVAGE_NODE, or else the only node of the configuration.
//
// Thread rule: any. Blocking: reads one file. Ownership: keeps nothing. Errors: INVALID with file, line
// and key; OS if the file cannot be read.
selvage_status selvage_config_check(const char *config_path, const char *node_name);

// Attaches this process to its web node and writes the handle to *node. NULL for config_path and node_name
// as in selvage_config_check. wait_ms says how long to wait until the node has joined the cluster; with 0
// it returns at once, the process joins in the background, and the functions that may wait then wait for
// that, too. Attaching again in one process shares the attachment. If the variable SELVAGE_LOG is set (warn,
// info, debug), the library writes its log to standard error.
//
// Thread rule: any. Blocking: at most wait_ms, and start-up work on files. Ownership: *node is the
// caller's until selvage_node_close. Errors: INVALID for the configuration; TIMEOUT; DENIED for a user
// that may not be this node; OS.
selvage_status selvage_node_attach(const char *config_path,
                                   const char *node_name,
                                   uint32_t wait_ms,
                                   selvage_node **node);

// Gives the attachment back. Sessions that are still open stay usable; the process leaves the node with
// the last handle. NULL is fine. In a forked child it does nothing.
//
// Thread rule: any, but no other call on this handle may be under way or follow. Blocking: when it is the
// last handle, waits (bounded) for operations under way. Ownership: takes the handle. Errors: none.
selvage_status selvage_node_close(selvage_node *node);

// Says which node this is, in what state.
//
// Thread rule: any. Blocking: never. Ownership: copies. Errors: FORKED.
selvage_status selvage_node_describe(const selvage_node *node, selvage_node_info *info);

// Writes the descriptor that is readable while completions wait: one per process, for poll, epoll or an
// event loop. Never read from it and never close it.
//
// Thread rule: any. Blocking: never. Ownership: the descriptor stays the library's, until the process has
// detached. Errors: FORKED.
selvage_status selvage_node_completion_fd(const selvage_node *node, int *fd);

// Finds the valid session cookie in the value of a Cookie header. Wrong, foreign and unsigned cookies are
// no cookies. Answers OK, or MISSING with *cookie untouched.
//
// Thread rule: any. Blocking: never. Ownership: copies. Errors: FORKED.
selvage_status selvage_cookie_read(const selvage_node *node,
                                   const char *header,
                                   size_t header_len,
                                   selvage_cookie *cookie);

// Lends the value of the Set-Cookie header that gives the browser this session on this host. Needed when
// selvage_session_describe says needs_cookie.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
// valid until the next call on it that is not describe, read or read_at. Errors: FORKED, UNDERWAY.
selvage_status selvage_cookie_set(selvage_session *session, const char **value, size_t *value_len);

// Lends the value of the Set-Cookie header that removes the cookie: for a session that is gone.
//
// Thread rule: any. Blocking: never. Ownership: the text is the node handle's, valid until that is closed.
// Errors: FORKED.
selvage_status selvage_cookie_clear(const selvage_node *node, const char **value, size_t *value_len);

// Makes a new session with a new id, hosted here and locked. Nobody else sees it before its first commit;
// closing it uncommitted leaves nothing. owner is the user that it belongs to, or NULL.
//
// Thread rule: any. Blocking: only while the node joins the cluster, bounded. Ownership: *session is the
// caller's until selvage_session_close. Errors: TOO_LARGE for the owner; FULL; TIMEOUT; FORKED.
selvage_status selvage_session_create(const selvage_node *node,
                                      const char *owner,
                                      size_t owner_len,
                                      selvage_session **session);

// As selvage_session_create, without waiting: at once with OK and now->session, or PENDING and later a
// completion.
//
// Thread rule: any. Blocking: never. Ownership: the session in *now or in the completion is the caller's
// until selvage_session_close. Errors: as selvage_session_create; INTERNAL aside, they leave *now
// untouched.
selvage_status selvage_session_create_start(const selvage_node *node,
                                            const char *owner,
                                            size_t owner_len,
                                            void *user_data,
                                            selvage_completion *now);

// Opens the session that a cookie names: from the node's cache, or from the session servers if its host is
// dead. mode is SELVAGE_OPEN_EXCLUSIVE, SELVAGE_OPEN_READ_ONLY or SELVAGE_OPEN_UNLOCKED. Answers OK with
// *session; MISSING if there is no such session (any more); ELSEWHERE with the other node's tag in
// *elsewhere, which may be NULL.
//
// If regenerate_grace_ms is configured, the id that a session had before selvage_session_regenerate opens
// for that time, at the same node, what the session was before; read-only whatever mode is asked for (see
// read_only of selvage_session_describe).
//
// Thread rule: any. Blocking: for the lock (exclusive), a fetch or the join, each bounded. Ownership:
// *session is the caller's until selvage_session_close. Errors: BUSY, TIMEOUT, NOT_YET, FULL, CORRUPT,
// INVALID for the mode, FORKED.
selvage_status selvage_session_open(const selvage_node *node,
                                    const selvage_cookie *cookie,
                                    uint32_t mode,
                                    selvage_session **session,
                                    selvage_tag *elsewhere);

// As selvage_session_open, without waiting. If it ends at once, the status is the same as
// selvage_session_open's and *now is filled for OK (session) and ELSEWHERE (elsewhere); PENDING means that
// a completion will come.
//
// Thread rule: any. Blocking: never. Ownership: the session in *now or in the completion is the caller's
// until selvage_session_close. Errors: as selvage_session_open; they leave *now untouched.
selvage_status selvage_session_open_start(const selvage_node *node,
                                          const selvage_cookie *cookie,
                                          uint32_t mode,
                                          void *user_data,
                                          selvage_completion *now);

// Closes a session: its lock is released and uncommitted changes are forgotten. NULL is fine. While an
// operation is under way the handle is gone at once, the operation goes on, and its completion comes with
// session NULL. In a forked child it does nothing.
//
// Thread rule: no other call on this handle may be under way or follow. Blocking: never. Ownership: takes
// the handle. Errors: none.
selvage_status selvage_session_close(selvage_session *session);

// Says what is known about the session beside its attributes.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: FORKED,
// UNDERWAY, GONE.
selvage_status selvage_session_describe(const selvage_session *session, selvage_session_info *info);

// Lends the whole session as one JSON object: "id" (text), "node" (text), "copies" (number), "version"
// (text, "epoch.counter"), "attributes" (object, sorted by name). Texts, numbers and truth values stand as
// themselves; bytes as {"base64":"..."} with RFC 4648's alphabet and padding; a number that JSON cannot
// say (NaN, infinity) as null.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
// valid until the next call on it that is not describe, read or read_at; a NUL does not end it. Errors:
// FORKED, UNDERWAY, GONE.
selvage_status selvage_session_json(selvage_session *session, const char **json, size_t *json_len);

// Lends the user that the session belongs to. Answers OK, or MISSING if it belongs to nobody.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
// valid until the next call on it that is not describe, read or read_at; a NUL does not end it. Errors:
// FORKED, UNDERWAY, GONE.
selvage_status selvage_session_owner(const selvage_session *session, const char **owner, size_t *owner_len);

// Says which user the session belongs to; NULL: nobody. Counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
// INVALID if it is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_owner(selvage_session *session, const char *owner, size_t owner_len);

// Reads an attribute where it lies, changes included: no copy, no allocation, no system call. Answers OK,
// or MISSING.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: value->bytes is the
// session's, valid until the next call on it that is not describe, read or read_at. Errors: INVALID if the
// name is not UTF-8, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_read(const selvage_session *session,
                                    const char *name,
                                    size_t name_len,
                                    selvage_value *value);

// Reads the attribute of an index, 0 and up, in the order of names. Answers OK, or MISSING behind the last
// one.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: name and value->bytes are the
// session's, valid until the next call on it that is not describe, read or read_at. Errors: FORKED,
// UNDERWAY, GONE.
selvage_status selvage_session_read_at(const selvage_session *session,
                                       size_t index,
                                       const char **name,
                                       size_t *name_len,
                                       selvage_value *value);

// Reads an attribute as the bytes that stand for it in an HTTP body: bytes and text as they are, an
// integer in decimal, a floating-point number in the shortest form that reads back the same, a truth value
// as true or false. kind says its type and may be NULL. Answers OK, or MISSING.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: bytes is the session's, valid
// until the next call on it that is not describe, read or read_at. Errors: INVALID if the name is not
// UTF-8, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_render(selvage_session *session,
                                      const char *name,
                                      size_t name_len,
                                      const uint8_t **bytes,
                                      size_t *bytes_len,
                                      uint32_t *kind);

// Sets an attribute to bytes. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE
// with size and limit, INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_bytes(selvage_session *session,
                                         const char *name,
                                         size_t name_len,
                                         const uint8_t *bytes,
                                         size_t bytes_len);

// Sets an attribute to text. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE
// with size and limit, INVALID for the name or text that is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_text(selvage_session *session,
                                        const char *name,
                                        size_t name_len,
                                        const char *chars,
                                        size_t chars_len);

// Sets an attribute to an integer. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_i64(selvage_session *session,
                                       const char *name,
                                       size_t name_len,
                                       int64_t integer);

// Sets an attribute to a floating-point number. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_f64(selvage_session *session,
                                       const char *name,
                                       size_t name_len,
                                       double number);

// Sets an attribute to a truth value: 0 is false, anything else true. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_set_bool(selvage_session *session,
                                        const char *name,
                                        size_t name_len,
                                        uint32_t truth);

// Removes an attribute. Answers OK, or MISSING if there was none. It counts with the next commit.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: none. Errors: INVALID if the
// name is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_remove(selvage_session *session, const char *name, size_t name_len);

// Adds to an integer, a missing one counting as 0, and writes the new one. It counts with the next commit.
// Answers OK, or WRONG_TYPE if the attribute is something else; integer may be NULL.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: none. Errors: INVALID for the
// name and for a sum that does not fit, TOO_LARGE, READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_incr(selvage_session *session,
                                    const char *name,
                                    size_t name_len,
                                    int64_t by,
                                    int64_t *integer);

// Makes the changes the session's new version, in the node's cache and in its copies, and writes what it
// reached. ack is SELVAGE_ACK_ALL, _ONE or _NONE. With fewer servers up it succeeds with fewer copies:
// read commit->copies. commit may be NULL. The handle stays open. On an unlocked handle it waits for the
// session's lock, as opening exclusively does, applies the changes to the version that is current then, and
// gives the lock back; without changes it waits for nothing.
//
// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
// bounded. Ownership: none. Errors: TOO_LARGE and FULL (nothing was changed, the changes are still there);
// of an unlocked handle BUSY and TIMEOUT (the same), and WRONG_TYPE if it adds to an attribute that somebody
// else has made no integer (the same); OWNERSHIP_LOST, LOCK_LOST and GONE (nobody will see the changes);
// INVALID, READ_ONLY, FORKED, UNDERWAY.
selvage_status selvage_session_commit(selvage_session *session, uint32_t ack, selvage_commit *commit);

// As selvage_session_commit, without waiting: at once with OK and now->commit, or PENDING and later a
// completion.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
// caller's. Errors: as selvage_session_commit; they leave *now untouched.
selvage_status selvage_session_commit_start(selvage_session *session,
                                            uint32_t ack,
                                            void *user_data,
                                            selvage_completion *now);

// Ends the session for ever: when it returns OK, every server that ever had a copy has its tombstone or
// has left the cluster. The handle stays to be closed, whatever the answer is.
//
// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
// bounded. Ownership: none. Errors: OWNERSHIP_LOST, LOCK_LOST; TIMEOUT (it is gone here, its tombstones
// follow in the background); of an unlocked handle BUSY and TIMEOUT also if the lock was not to be had
// (nothing was changed; open it again); READ_ONLY, FORKED, UNDERWAY, GONE.
selvage_status selvage_session_destroy(selvage_session *session);

// As selvage_session_destroy, without waiting: at once with OK, or PENDING and later a completion.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
// caller's. Errors: as selvage_session_destroy; they leave *now untouched.
selvage_status selvage_session_destroy_start(selvage_session *session,
                                             void *user_data,
                                             selvage_completion *now);

// Gives the session a new id, for a change of privilege: when it returns OK the copies under the new id
// and the tombstone of the old one are acked. Uncommitted changes stay uncommitted and go with the new id.
// The browser needs the new cookie. The absolute lifetime goes on: a new id does not renew it.
//
// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
// bounded. Ownership: none. Errors: as selvage_session_commit. The session then has its old id, or already
// its new one, while the tombstone of the old one follows in the background (TIMEOUT, OWNERSHIP_LOST,
// LOCK_LOST): needs_cookie of selvage_session_describe says so, and the browser needs the new cookie with
// the error, too.
selvage_status selvage_session_regenerate(selvage_session *session);

// As selvage_session_regenerate, without waiting: at once with OK, or PENDING and later a completion.
//
// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
// caller's. Errors: as selvage_session_regenerate; they leave *now untouched.
selvage_status selvage_session_regenerate_start(selvage_session *session,
                                                void *user_data,
                                                selvage_completion *now);

// Destroys every session of an owner, at whatever node it is ("log me out everywhere"): each that had this
// owner by a commit that returned before this call. When it returns OK they are gone for ever, whatever dies
// afterwards, and *count says how many there were, as far as the nodes could tell; count may be NULL. A
// session that the caller itself has open for changes must be destroyed or closed before: this call waits
// for the lock of each session. Requests to sessions of the owner that are created or changed meanwhile are
// not waited for.
//
// Thread rule: any. Blocking: for the director, all nodes and, if a node has just died, the adoption of its
// sessions, at most the configuration's wait_ms. Ownership: none. Errors: INVALID (the owner is empty or not
// UTF-8), TOO_LARGE for the owner; NOT_YET (some sessions may be left; the text says where; call again);
// UNREACHABLE, TIMEOUT (no director); FORKED.
selvage_status selvage_node_destroy_owner(const selvage_node *node,
                                          const char *owner,
                                          size_t owner_len,
                                          uint64_t *count);

// As selvage_node_destroy_owner, without waiting: always PENDING and later a completion, whose count says
// how many sessions there were.
//
// Thread rule: any. Blocking: never. Ownership: keeps nothing of the arguments. Errors: FORKED at once;
// others in the completion. *now is left untouched.
selvage_status selvage_node_destroy_owner_start(const selvage_node *node,
                                                const char *owner,
                                                size_t owner_len,
                                                void *user_data,
                                                selvage_completion *now);

// Writes the next completion, of any session of this process. Answers OK, or EMPTY; after EMPTY the
// descriptor of selvage_node_completion_fd is not readable until another completion comes. If the
// operation failed, its number is in completion->status and its text is selvage_last_error's.
//
// Thread rule: any. Blocking: never. Ownership: completion->session is the caller's. Errors: FORKED.
selvage_status selvage_node_next_completion(const selvage_node *node, selvage_completion *completion);

// Gives up an open or create that is under way. Answers OK: no completion will come; or MISSING: nothing
// of this user_data can be given up (any more), and if it was started its completion comes.
//
// Thread rule: any. Blocking: never. Ownership: none. Errors: FORKED.
selvage_status selvage_node_cancel(const selvage_node *node, const void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SELVAGE_H */
