/*
 * The nginx module's parts and what they share.
 *
 *   module.c    the module and the life of a worker process
 *   conf.c      directives and configuration
 *   wait.c      operations under way: the completion descriptor in the event loop, and who waits for what
 *   request.c   a request's context: cookies, and what is known of its session
 *   phase.c     the session of ordinary locations, before content: the look and the turn
 *   change.c    changes: from directives, and into an open session
 *   turn.c      one turn of a session: open or create, change, commit
 *   header.c    changes from an upstream's response headers; the encoding of values in headers
 *   filter.c    holds a response's head until the changes that came with it are committed
 *   variable.c  $selvage_...
 *   count.c     what all workers share: $selvage_total_..., loads of the configuration
 *   api.c       the content handler of session data
 *   put.c       the body of a PUT to it
 *   answer.c    responses of the module's own
 *
 * Invariants:
 *   1. Nothing here blocks: only _start forms and functions that never wait are called.
 *   2. A request may end while its operation is under way. An operation is therefore not in the request's
 *      pool, and points to the request only until the request's cleanup has run.
 *   3. A session handle is open only during a look, a turn or the API's course; where `selvage_lock` is on,
 *      from the turn before content to the turn at the response's head. It is never open while a client
 *      sends or reads a body.
 *   4. What variables show was copied into the request's pool while the session was open.
 *   5. The head of a response leaves only after everything that this request has changed is committed.
 */
#ifndef NGX_HTTP_SELVAGE_H
#define NGX_HTTP_SELVAGE_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
#include <selvage.h>

/* selvage_session */
#define NGX_HTTP_SELVAGE_OFF 0
#define NGX_HTTP_SELVAGE_ON 1
#define NGX_HTTP_SELVAGE_ON_CHANGE 2
#define NGX_HTTP_SELVAGE_CREATE 3

/* selvage_lock */
#define NGX_HTTP_SELVAGE_LOCK_OFF 0
#define NGX_HTTP_SELVAGE_LOCK_ON 1
#define NGX_HTTP_SELVAGE_LOCK_READ_ONLY 2

/* Longest name of an attribute, bytes; the library checks it again. */
#define NGX_HTTP_SELVAGE_NAME_MAX 128

/* Marks in r->buffered that the head is held; the other three bits are nginx's. */
#define NGX_HTTP_SELVAGE_BUFFERED 0x08

/* `selvage <configuration file> [node name]`, and what this worker process made of it. */
typedef struct {
    ngx_flag_t set;
    ngx_str_t path;
    ngx_str_t name;
    /* Attributes that the configuration's variables name, as folded names (ngx_str_t). */
    ngx_array_t attributes;
    /* In nginx's shared memory: count.c. */
    ngx_shm_zone_t *shared;
    /* Which load of a configuration this is. */
    ngx_atomic_uint_t load;
    selvage_node *node;
    selvage_node_info info;
    /* The completion descriptor in the event loop. */
    ngx_connection_t *doorbell;
    /* Fires until attaching has worked. */
    ngx_event_t attach;
    /* Keeps a worker that shuts down gracefully alive while operations are under way. */
    ngx_event_t linger;
    ngx_uint_t underway;
} ngx_http_selvage_main_conf_t;

typedef enum {
    NGX_HTTP_SELVAGE_CHANGE_SET,
    NGX_HTTP_SELVAGE_CHANGE_INCR,
    NGX_HTTP_SELVAGE_CHANGE_UNSET,
    NGX_HTTP_SELVAGE_CHANGE_OWNER,
    NGX_HTTP_SELVAGE_CHANGE_REGENERATE,
    NGX_HTTP_SELVAGE_CHANGE_DESTROY
} ngx_http_selvage_change_e;

/* A change that is to be made, of a directive or a response header. */
typedef struct {
    ngx_http_selvage_change_e kind;
    ngx_str_t name;
    ngx_str_t value;
    int64_t by;
} ngx_http_selvage_change_t;

/* A directive that changes the session. */
typedef struct {
    ngx_http_selvage_change_e kind;
    ngx_str_t name;
    ngx_http_complex_value_t *value;
    ngx_http_complex_value_t *condition;
} ngx_http_selvage_rule_t;

/* `selvage_exclude`: by URI (whole, prefix or pattern) or by a value that is neither empty nor 0. */
typedef struct {
    ngx_str_t uri;
#if (NGX_PCRE)
    ngx_regex_t *regex;
#endif
    ngx_http_complex_value_t *value;
    unsigned whole:1;
} ngx_http_selvage_exclude_t;

typedef struct {
    ngx_uint_t session;
    ngx_uint_t lock;
    ngx_flag_t api;
    /* ngx_http_selvage_rule_t, ngx_http_selvage_exclude_t; NULL: none. */
    ngx_array_t *rules;
    ngx_array_t *excludes;
    /* Where the first rule of this level stands. */
    ngx_str_t rules_file;
    ngx_uint_t rules_line;
} ngx_http_selvage_loc_conf_t;

/* Goes on with a request after an operation; what `done` points to lives only for the call. */
typedef void (*ngx_http_selvage_resume_pt)(ngx_http_request_t *r, const selvage_completion *done);

/* Goes on with a request after a turn. */
typedef void (*ngx_http_selvage_turned_pt)(ngx_http_request_t *r, selvage_status status);

typedef enum {
    NGX_HTTP_SELVAGE_OPEN_EXCLUSIVE,
    NGX_HTTP_SELVAGE_OPEN_UNLOCKED,
    NGX_HTTP_SELVAGE_OPEN_READ_ONLY,
    NGX_HTTP_SELVAGE_CREATE_SESSION,
    NGX_HTTP_SELVAGE_COMMIT,
    NGX_HTTP_SELVAGE_DESTROY,
    NGX_HTTP_SELVAGE_RENEW
} ngx_http_selvage_operation_e;

/* An operation that may be under way (invariant 2). */
typedef struct {
    ngx_http_request_t *request;
    ngx_http_selvage_resume_pt resume;
} ngx_http_selvage_operation_t;

typedef enum {
    NGX_HTTP_SELVAGE_SESSION,
    NGX_HTTP_SELVAGE_ATTRIBUTE,
    NGX_HTTP_SELVAGE_INCR,
    NGX_HTTP_SELVAGE_REGENERATE
} ngx_http_selvage_target_e;

/* The head of the main request's response. */
typedef enum {
    /* There is none yet. */
    NGX_HTTP_SELVAGE_HEAD_AHEAD = 0,
    /* It waits for a commit, and the body with it. */
    NGX_HTTP_SELVAGE_HEAD_HELD,
    /* It has left. */
    NGX_HTTP_SELVAGE_HEAD_PASSED,
    /* Another answer has left in its place, and what still comes of its body is an error. */
    NGX_HTTP_SELVAGE_HEAD_BROKEN
} ngx_http_selvage_head_e;

/* What is counted: heads that had to wait, and failures by the status that answers them. */
typedef enum {
    NGX_HTTP_SELVAGE_COUNT_HELD = 0,
    NGX_HTTP_SELVAGE_COUNT_BAD_REQUEST,
    NGX_HTTP_SELVAGE_COUNT_CONFLICT,
    NGX_HTTP_SELVAGE_COUNT_TOO_LARGE,
    NGX_HTTP_SELVAGE_COUNT_ELSEWHERE,
    NGX_HTTP_SELVAGE_COUNT_FAILED,
    NGX_HTTP_SELVAGE_COUNT_BAD_INSTRUCTIONS,
    NGX_HTTP_SELVAGE_COUNT_UNAVAILABLE,
    NGX_HTTP_SELVAGE_COUNT_FULL,
    NGX_HTTP_SELVAGE_COUNTS
} ngx_http_selvage_count_e;

/* Why a request is answered by the module instead; code 0: it is not. */
typedef struct {
    ngx_uint_t code;
    const char *line;
    selvage_tag elsewhere;
} ngx_http_selvage_failure_t;

/* What the module knows about a request; survives internal redirects. */
typedef struct {
    ngx_http_selvage_main_conf_t *main;
    selvage_session *session;
    ngx_http_selvage_operation_t *operation;
    selvage_cookie cookie;

    /* What is known of the session (invariant 4); values as they stand in headers, by the index in
     * main->attributes, NULL data for none. */
    ngx_str_t id;
    ngx_str_t version;
    ngx_str_t *attributes;
    /* Copies of the version that is known. */
    uint32_t copies;

    /* The last location of this request that uses sessions. */
    ngx_http_selvage_loc_conf_t *policy;
    /* Lists of rules that were carried out (ngx_array_t *), and changes that are to be made. */
    ngx_array_t *carried;
    ngx_array_t *changes;
    /* Goes on after the turn. */
    ngx_http_selvage_turned_pt turned;
    ngx_http_selvage_failure_t failure;
    /* Value of the Set-Cookie header, or empty. */
    ngx_str_t set_cookie;
    /* Why an upstream's instructions cannot be followed, if they cannot. */
    const char *refusal;
    /* The upstream whose headers were looked through. */
    ngx_http_upstream_t *harvested;

    ngx_http_selvage_head_e head;
    ngx_chain_t *held;
    /* Ends the holding of a head outside of the filter that holds it. */
    ngx_event_t release;

    /* For the API: what is asked for, and of which attribute. */
    ngx_http_selvage_target_e target;
    ngx_str_t name;
    ngx_str_t body;
    int64_t number;

    unsigned has_cookie:1;
    unsigned created:1;
    unsigned committed:1;
    /* The session of an ordinary location has been looked at. */
    unsigned looked:1;
    /* There was a session in this request. */
    unsigned had_session:1;
    /* The phase handler has returned and waits to be run again. */
    unsigned waits:1;
    /* The turn before content has ended, and its handler is to go on. */
    unsigned turn_over:1;
    /* The turn has changed the open session, has given it a new id. */
    unsigned changed:1;
    unsigned renewed:1;
    unsigned turn_creates:1;
    /* The session that the turn has opened is locked. */
    unsigned turn_locked:1;
    unsigned turn_keeps:1;
    unsigned body_read:1;
    /* The response is the module's own. */
    unsigned own:1;
    /* The header filter is on the stack. */
    unsigned in_filter:1;
    /* All of the held body is here. */
    unsigned held_last:1;
} ngx_http_selvage_ctx_t;

extern ngx_module_t ngx_http_selvage_module;
extern ngx_command_t ngx_http_selvage_commands[];

/* conf.c */
void *ngx_http_selvage_create_main_conf(ngx_conf_t *cf);
void *ngx_http_selvage_create_loc_conf(ngx_conf_t *cf);
char *ngx_http_selvage_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
const char *ngx_http_selvage_text(ngx_str_t *text);

/* wait.c */
ngx_int_t ngx_http_selvage_doorbell_open(ngx_http_selvage_main_conf_t *smcf, ngx_log_t *log);
void ngx_http_selvage_doorbell_close(ngx_http_selvage_main_conf_t *smcf);
void ngx_http_selvage_start(ngx_http_request_t *r, ngx_http_selvage_operation_e what,
    ngx_http_selvage_resume_pt resume);
void ngx_http_selvage_abandon(ngx_http_selvage_main_conf_t *smcf, ngx_http_selvage_operation_t *operation);

/* request.c */
ngx_http_selvage_ctx_t *ngx_http_selvage_known_ctx(ngx_http_request_t *r);
ngx_http_selvage_ctx_t *ngx_http_selvage_ctx(ngx_http_request_t *r);
void ngx_http_selvage_read_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_adopt(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_give_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_set_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_clear_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_learn(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
void ngx_http_selvage_forget(ngx_http_selvage_ctx_t *ctx);
void ngx_http_selvage_close_session(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
void ngx_http_selvage_drop_session(ngx_http_selvage_ctx_t *ctx);

/* phase.c */
ngx_int_t ngx_http_selvage_look_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_selvage_turn_handler(ngx_http_request_t *r);

/* change.c */
ngx_int_t ngx_http_selvage_number(const u_char *text, size_t len, int64_t *number);
ngx_http_selvage_change_t *ngx_http_selvage_push_change(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_uint_t ngx_http_selvage_has_changes(ngx_http_selvage_ctx_t *ctx);
ngx_uint_t ngx_http_selvage_has_change(ngx_http_selvage_ctx_t *ctx, ngx_http_selvage_change_e kind);
ngx_uint_t ngx_http_selvage_stores(ngx_http_selvage_ctx_t *ctx);
ngx_uint_t ngx_http_selvage_holds(ngx_http_request_t *r, ngx_http_complex_value_t *value);
ngx_int_t ngx_http_selvage_gather(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx,
    ngx_http_selvage_loc_conf_t *slcf);
selvage_status ngx_http_selvage_apply(ngx_http_selvage_ctx_t *ctx);

/* turn.c */
void ngx_http_selvage_turn(ngx_http_request_t *r, ngx_http_selvage_turned_pt turned);

/* header.c */
ngx_int_t ngx_http_selvage_encode(ngx_pool_t *pool, const u_char *bytes, size_t len, ngx_str_t *text);
ngx_int_t ngx_http_selvage_harvest(ngx_http_request_t *r);
void ngx_http_selvage_strip(ngx_http_request_t *r);

/* filter.c */
ngx_int_t ngx_http_selvage_filter_init(ngx_conf_t *cf);
ngx_int_t ngx_http_selvage_send_head(ngx_http_request_t *r);
ngx_int_t ngx_http_selvage_send_body(ngx_http_request_t *r, ngx_chain_t *out);

/* variable.c */
ngx_int_t ngx_http_selvage_add_variables(ngx_conf_t *cf);
ngx_int_t ngx_http_selvage_find_attributes(ngx_cycle_t *cycle, ngx_http_selvage_main_conf_t *smcf);
ngx_int_t ngx_http_selvage_learn_attributes(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);

/* count.c */
ngx_int_t ngx_http_selvage_add_shared(ngx_conf_t *cf, ngx_http_selvage_main_conf_t *smcf);
ngx_int_t ngx_http_selvage_add_count_variables(ngx_conf_t *cf);
void ngx_http_selvage_count_load(ngx_http_selvage_main_conf_t *smcf);
ngx_uint_t ngx_http_selvage_ends(ngx_http_selvage_main_conf_t *smcf);
void ngx_http_selvage_count(ngx_http_selvage_main_conf_t *smcf, ngx_http_selvage_count_e what);
void ngx_http_selvage_count_failure(ngx_http_selvage_main_conf_t *smcf, ngx_uint_t code);

/* api.c */
ngx_int_t ngx_http_selvage_api_handler(ngx_http_request_t *r);
ngx_uint_t ngx_http_selvage_api_creates(ngx_http_request_t *r);
void ngx_http_selvage_api_open(ngx_http_request_t *r);
void ngx_http_selvage_api_missing(ngx_http_request_t *r);
void ngx_http_selvage_api_fail(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere);
void ngx_http_selvage_api_end_line(ngx_http_request_t *r, ngx_uint_t status, const char *line);

/* put.c */
ngx_int_t ngx_http_selvage_put_too_large(ngx_http_request_t *r, off_t size, char *line, size_t len);
void ngx_http_selvage_put(ngx_http_request_t *r);

/* answer.c */
ngx_int_t ngx_http_selvage_add_header(ngx_http_request_t *r, const char *name, const char *value, size_t len);
ngx_int_t ngx_http_selvage_add_session_headers(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_answer(ngx_http_request_t *r, ngx_uint_t status, const char *type,
    ngx_str_t *body);
ngx_int_t ngx_http_selvage_answer_line(ngx_http_request_t *r, ngx_uint_t status, const char *line);
ngx_uint_t ngx_http_selvage_http_status(selvage_status status);
void ngx_http_selvage_fail(ngx_http_request_t *r, ngx_uint_t code, const char *line);
void ngx_http_selvage_fail_by(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere);
ngx_int_t ngx_http_selvage_answer_failure(ngx_http_request_t *r);
ngx_int_t ngx_http_selvage_answer_status(ngx_http_request_t *r, selvage_status status,
    const selvage_tag *elsewhere);

#endif
