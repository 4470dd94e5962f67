/*
 * Operations under way: the library's completion descriptor in nginx's event loop, and who waits for what.
 *
 * Every start function ends in exactly one call of `resume`, at once or from the event loop, unless the
 * request ends first. The library calls the operation's address back as user_data.
 */
#include "ngx_http_selvage.h"

/* How often the timer looks that keeps a worker alive while operations are under way, ms. */
#define NGX_HTTP_SELVAGE_LINGER_INTERVAL 100

static void ngx_http_selvage_doorbell_handler(ngx_event_t *event);
static void ngx_http_selvage_write_handler(ngx_event_t *event);
static void ngx_http_selvage_linger_handler(ngx_event_t *event);
static void ngx_http_selvage_complete(ngx_http_selvage_main_conf_t *smcf, const selvage_completion *done);


ngx_int_t
ngx_http_selvage_doorbell_open(ngx_http_selvage_main_conf_t *smcf, ngx_log_t *log)
{
    ngx_connection_t *c;
    ngx_uint_t flags;
    int fd;

    if (selvage_node_completion_fd(smcf->node, &fd) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    c = ngx_get_connection(fd, log);
    if (c == NULL) {
        return NGX_ERROR;
    }
    c->data = smcf;
    c->read->log = log;
    c->read->handler = ngx_http_selvage_doorbell_handler;
    c->write->log = log;
    c->write->handler = ngx_http_selvage_write_handler;
    flags = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT;
    if (ngx_add_event(c->read, NGX_READ_EVENT, flags) != NGX_OK) {
        ngx_free_connection(c);
        c->fd = (ngx_socket_t) -1;
        return NGX_ERROR;
    }
    smcf->doorbell = c;

    smcf->linger.handler = ngx_http_selvage_linger_handler;
    smcf->linger.data = smcf;
    smcf->linger.log = log;

    /* Something may have completed between the attaching and the registration. */
    ngx_post_event(c->read, &ngx_posted_events);
    return NGX_OK;
}


void
ngx_http_selvage_doorbell_close(ngx_http_selvage_main_conf_t *smcf)
{
    ngx_connection_t *c = smcf->doorbell;

    if (c == NULL) {
        return;
    }
    smcf->doorbell = NULL;
    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }
    if (c->read->active) {
        ngx_del_event(c->read, NGX_READ_EVENT, 0);
    }
    if (smcf->linger.timer_set) {
        ngx_del_timer(&smcf->linger);
    }
    /* The descriptor is the library's: it closes it. */
    ngx_free_connection(c);
    c->fd = (ngx_socket_t) -1;
}


static void
ngx_http_selvage_doorbell_handler(ngx_event_t *event)
{
    ngx_connection_t *c = event->data;
    ngx_http_selvage_main_conf_t *smcf = c->data;
    selvage_completion done;

    while (selvage_node_next_completion(smcf->node, &done) == SELVAGE_STATUS_OK) {
        ngx_http_selvage_complete(smcf, &done);
    }
}


static void
ngx_http_selvage_write_handler(ngx_event_t *event)
{
    /* An eventfd is always writable; nobody asked. */
}


/* A graceful shutdown waits for timers only, so one must run while something is under way. */
static void
ngx_http_selvage_linger_handler(ngx_event_t *event)
{
    ngx_http_selvage_main_conf_t *smcf = event->data;

    if (smcf->underway > 0) {
        ngx_add_timer(event, NGX_HTTP_SELVAGE_LINGER_INTERVAL);
    }
}


static void
ngx_http_selvage_complete(ngx_http_selvage_main_conf_t *smcf, const selvage_completion *done)
{
    ngx_http_selvage_operation_t *operation = done->user_data;
    ngx_http_request_t *r = operation->request;
    ngx_http_selvage_resume_pt resume = operation->resume;
    ngx_http_selvage_ctx_t *ctx;
    ngx_connection_t *c;

    ngx_free(operation);
    smcf->underway--;

    if (r == NULL) {
        /* The request has ended; what was opened for it nobody wants. */
        (void) selvage_session_close(done->session);
        return;
    }

    c = r->connection;
    ngx_http_set_log_request(c->log, r);
    ctx = ngx_http_selvage_ctx(r);
    ctx->operation = NULL;
    if (ctx->head == NGX_HTTP_SELVAGE_HEAD_AHEAD) {
        r->read_event_handler = ngx_http_block_reading;
    }
    resume(r, done);
    ngx_http_run_posted_requests(c);
}


/* Hands what is to be done to the library; `now` is as the library documents it. */
static selvage_status
ngx_http_selvage_begin(ngx_http_request_t *r, ngx_http_selvage_operation_e what, void *operation,
    selvage_completion *now)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    switch (what) {
    case NGX_HTTP_SELVAGE_OPEN_EXCLUSIVE:
        return selvage_session_open_start(smcf->node, &ctx->cookie, SELVAGE_OPEN_EXCLUSIVE, operation, now);
    case NGX_HTTP_SELVAGE_OPEN_UNLOCKED:
        return selvage_session_open_start(smcf->node, &ctx->cookie, SELVAGE_OPEN_UNLOCKED, operation, now);
    case NGX_HTTP_SELVAGE_OPEN_READ_ONLY:
        return selvage_session_open_start(smcf->node, &ctx->cookie, SELVAGE_OPEN_READ_ONLY, operation, now);
    case NGX_HTTP_SELVAGE_CREATE_SESSION:
        return selvage_session_create_start(smcf->node, NULL, 0, operation, now);
    case NGX_HTTP_SELVAGE_COMMIT:
        return selvage_session_commit_start(ctx->session, SELVAGE_ACK_ALL, operation, now);
    case NGX_HTTP_SELVAGE_DESTROY:
        return selvage_session_destroy_start(ctx->session, operation, now);
    case NGX_HTTP_SELVAGE_RENEW:
        return selvage_session_regenerate_start(ctx->session, operation, now);
    }
    return SELVAGE_STATUS_INTERNAL;
}


void
ngx_http_selvage_start(ngx_http_request_t *r, ngx_http_selvage_operation_e what,
    ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_http_selvage_operation_t *operation;
    selvage_completion now;

    ngx_memzero(&now, sizeof(now));
    operation = ngx_alloc(sizeof(ngx_http_selvage_operation_t), r->connection->log);
    if (operation == NULL) {
        now.status = SELVAGE_STATUS_INTERNAL;
        resume(r, &now);
        return;
    }
    operation->request = r;
    operation->resume = resume;

    now.status = ngx_http_selvage_begin(r, what, operation, &now);
    if (now.status == SELVAGE_STATUS_PENDING) {
        ctx->operation = operation;
        if (ctx->head == NGX_HTTP_SELVAGE_HEAD_AHEAD) {
            /* Afterwards whoever makes the response looks whether the client is still there. */
            r->read_event_handler = ngx_http_test_reading;
        }
        smcf->underway++;
        if (!smcf->linger.timer_set) {
            ngx_add_timer(&smcf->linger, NGX_HTTP_SELVAGE_LINGER_INTERVAL);
        }
        return;
    }

    ngx_free(operation);
    resume(r, &now);
}


/* The request ends while its operation may be under way (invariant 2). */
void
ngx_http_selvage_abandon(ngx_http_selvage_main_conf_t *smcf, ngx_http_selvage_operation_t *operation)
{
    if (selvage_node_cancel(smcf->node, operation) == SELVAGE_STATUS_OK) {
        smcf->underway--;
        ngx_free(operation);
        return;
    }
    operation->request = NULL;
}
