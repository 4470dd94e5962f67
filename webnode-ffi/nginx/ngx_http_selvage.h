/*
 * The nginx module's parts and what they share.
 *
 *   module.c    directives, configuration, the life of a worker process
 *   wait.c      operations under way: the completion descriptor in the event loop, and who waits for what
 *   session.c   a request's context, cookies, and the session of ordinary locations
 *   api.c       the content handler of session data
 *   put.c       the body of a PUT to it
 *   answer.c    responses
 *
 * Invariants:
 *   1. Nothing here blocks: only _start forms and functions that never wait are called.
 *   2. A request may end while its operation is under way. An operation is therefore not in the request's
 *      pool, and points to the request only until the request's cleanup has run.
 *   3. A session handle is open only while its request computes; never while a response is sent, a body is
 *      read or another handler produces content.
 */
#ifndef NGX_HTTP_SELVAGE_H
#define NGX_HTTP_SELVAGE_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
#include <selvage.h>

#define NGX_HTTP_SELVAGE_OFF 0
#define NGX_HTTP_SELVAGE_ON 1
#define NGX_HTTP_SELVAGE_CREATE 2

/* `selvage <configuration file> [node name]`, and what this worker process made of it. */
typedef struct {
    ngx_flag_t set;
    ngx_str_t path;
    ngx_str_t name;
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

typedef struct {
    ngx_uint_t session;
    ngx_flag_t api;
} ngx_http_selvage_loc_conf_t;

/* Goes on with a request after an operation; what `done` points to lives only for the call. */
typedef void (*ngx_http_selvage_resume_pt)(ngx_http_request_t *r, const selvage_completion *done);

typedef enum {
    NGX_HTTP_SELVAGE_OPEN_EXCLUSIVE,
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

/* What the module knows about a request; survives internal redirects. */
typedef struct {
    ngx_http_selvage_main_conf_t *main;
    selvage_session *session;
    ngx_http_selvage_operation_t *operation;
    selvage_cookie cookie;
    /* How the look at an ordinary location's session ended, and where the session is. */
    selvage_status phase_status;
    selvage_tag elsewhere;
    /* For the API: what is asked for, and of which attribute. */
    ngx_http_selvage_target_e target;
    ngx_str_t name;
    ngx_str_t body;
    int64_t number;
    /* Copies that the last commit reached. */
    uint32_t copies;
    unsigned has_cookie:1;
    unsigned created:1;
    unsigned committed:1;
    /* The session of an ordinary location has been looked at. */
    unsigned phase_done:1;
    /* The phase handler has returned and waits to be run again. */
    unsigned phase_waits:1;
} ngx_http_selvage_ctx_t;

extern ngx_module_t ngx_http_selvage_module;

/* wait.c */
ngx_int_t ngx_http_selvage_doorbell_open(ngx_http_selvage_main_conf_t *smcf, ngx_log_t *log);
void ngx_http_selvage_doorbell_close(ngx_http_selvage_main_conf_t *smcf);
void ngx_http_selvage_start(ngx_http_request_t *r, ngx_http_selvage_operation_e what,
    ngx_http_selvage_resume_pt resume);
void ngx_http_selvage_abandon(ngx_http_selvage_main_conf_t *smcf, ngx_http_selvage_operation_t *operation);

/* session.c */
ngx_http_selvage_ctx_t *ngx_http_selvage_ctx(ngx_http_request_t *r);
void ngx_http_selvage_read_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_adopt(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_set_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_clear_cookie(ngx_http_request_t *r);
void ngx_http_selvage_close_session(ngx_http_selvage_ctx_t *ctx);
ngx_int_t ngx_http_selvage_phase_handler(ngx_http_request_t *r);

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
ngx_int_t ngx_http_selvage_add_commit_headers(ngx_http_request_t *r);
ngx_int_t ngx_http_selvage_answer(ngx_http_request_t *r, ngx_uint_t status, const char *type,
    ngx_str_t *body);
ngx_int_t ngx_http_selvage_answer_line(ngx_http_request_t *r, ngx_uint_t status, const char *line);
ngx_int_t ngx_http_selvage_answer_status(ngx_http_request_t *r, selvage_status status,
    const selvage_tag *elsewhere);

#endif
