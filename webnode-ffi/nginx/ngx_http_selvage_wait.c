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
    if (ngx_add_event(c->read, NGX_READ_EVENT, (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT
                                                                                     : NGX_LEVEL_EVENT)
        != NGX_OK)
    {
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
    resume(r, done);
    ngx_http_run_posted_requests(c);
}


static ngx_http_selvage_operation_t *
ngx_http_selvage_operation(ngx_http_request_t *r, ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_operation_t *operation = ngx_alloc(sizeof(ngx_http_selvage_operation_t), r->connection->log);

    if (operation != NULL) {
        operation->request = r;
        operation->resume = resume;
    }
    return operation;
}


/* What a start function answered: wait for the completion, or go on at once. */
static void
ngx_http_selvage_started(ngx_http_selvage_operation_t *operation, selvage_status status, selvage_completion *now)
{
    ngx_http_request_t *r = operation->request;
    ngx_http_selvage_resume_pt resume = operation->resume;
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);

    if (status == SELVAGE_STATUS_PENDING) {
        ngx_http_selvage_ctx(r)->operation = operation;
        smcf->underway++;
        if (!smcf->linger.timer_set) {
            ngx_add_timer(&smcf->linger, NGX_HTTP_SELVAGE_LINGER_INTERVAL);
        }
        return;
    }

    ngx_free(operation);
    now->status = status;
    resume(r, now);
}


static void
ngx_http_selvage_no_memory(ngx_http_request_t *r, ngx_http_selvage_resume_pt resume)
{
    selvage_completion now;

    ngx_memzero(&now, sizeof(now));
    now.status = SELVAGE_STATUS_INTERNAL;
    resume(r, &now);
}


void
ngx_http_selvage_start_open(ngx_http_request_t *r, uint32_t mode, ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_http_selvage_operation_t *operation;
    selvage_completion now;

    ngx_memzero(&now, sizeof(now));
    if (smcf->node == NULL) {
        now.status = SELVAGE_STATUS_NOT_READY;
        resume(r, &now);
        return;
    }
    operation = ngx_http_selvage_operation(r, resume);
    if (operation == NULL) {
        ngx_http_selvage_no_memory(r, resume);
        return;
    }
    ngx_http_selvage_started(operation,
                             selvage_session_open_start(smcf->node, &ctx->cookie, mode, operation, &now), &now);
}


void
ngx_http_selvage_start_commit(ngx_http_request_t *r, ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_operation_t *operation = ngx_http_selvage_operation(r, resume);
    selvage_completion now;

    if (operation == NULL) {
        ngx_http_selvage_no_memory(r, resume);
        return;
    }
    ngx_memzero(&now, sizeof(now));
    ngx_http_selvage_started(operation,
                             selvage_session_commit_start(ngx_http_selvage_ctx(r)->session, SELVAGE_ACK_ALL,
                                                          operation, &now),
                             &now);
}


void
ngx_http_selvage_start_destroy(ngx_http_request_t *r, ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_operation_t *operation = ngx_http_selvage_operation(r, resume);
    selvage_completion now;

    if (operation == NULL) {
        ngx_http_selvage_no_memory(r, resume);
        return;
    }
    ngx_memzero(&now, sizeof(now));
    ngx_http_selvage_started(operation,
                             selvage_session_destroy_start(ngx_http_selvage_ctx(r)->session, operation, &now), &now);
}


void
ngx_http_selvage_start_regenerate(ngx_http_request_t *r, ngx_http_selvage_resume_pt resume)
{
    ngx_http_selvage_operation_t *operation = ngx_http_selvage_operation(r, resume);
    selvage_completion now;

    if (operation == NULL) {
        ngx_http_selvage_no_memory(r, resume);
        return;
    }
    ngx_memzero(&now, sizeof(now));
    ngx_http_selvage_started(operation,
                             selvage_session_regenerate_start(ngx_http_selvage_ctx(r)->session, operation, &now),
                             &now);
}
