/*
 * The head of a response leaves when what came with it is committed (invariant 5).
 *
 * The filter runs before nginx's own header filters that write to the head (add_header, gzip, ranges), so
 * these see the session as it has become. Where a turn is needed the head is held, and the body with it, as
 * far as nginx's buffers let it come; nobody waits in the worker. When the turn is over, the head and the
 * body go on, or another answer goes out in their place: then what still comes of the body ends the
 * connection, after that answer.
 */
#include "ngx_http_selvage.h"

static ngx_http_output_header_filter_pt ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt ngx_http_next_body_filter;

static void ngx_http_selvage_head_turned(ngx_http_request_t *r, selvage_status status);
static void ngx_http_selvage_release_handler(ngx_event_t *event);


/* Sends the head on. A worker that ends closes its idle connections, and whoever sends a request on one in
 * that moment cannot know whether it was heard. So one that is about to end says beforehand that it closes
 * them. */
static ngx_int_t
ngx_http_selvage_next_head(ngx_http_request_t *r)
{
    if (ngx_http_selvage_ends(ngx_http_get_module_main_conf(r, ngx_http_selvage_module))) {
        r->keepalive = 0;
    }
    return ngx_http_next_header_filter(r);
}


/* Sends the head of an answer of the module's own. */
ngx_int_t
ngx_http_selvage_send_head(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    ctx->own = 1;
    if (ctx->head != NGX_HTTP_SELVAGE_HEAD_HELD) {
        return ngx_http_send_header(r);
    }
    /* In the place of a held one: what lies before this filter has had its turn. */
    if (ngx_http_selvage_add_session_headers(r, ctx) != NGX_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_next_head(r);
}


/* Sends the body of an answer of the module's own. */
ngx_int_t
ngx_http_selvage_send_body(ngx_http_request_t *r, ngx_chain_t *out)
{
    if (ngx_http_selvage_ctx(r)->head != NGX_HTTP_SELVAGE_HEAD_HELD) {
        return ngx_http_output_filter(r, out);
    }
    return ngx_http_next_body_filter(r, out);
}


/* Lets the head pass. */
static ngx_int_t
ngx_http_selvage_pass(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ctx->head = NGX_HTTP_SELVAGE_HEAD_PASSED;
    if (ngx_http_selvage_add_session_headers(r, ctx) != NGX_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_next_head(r);
}


/* Whether the changes that came with the head can be made; if not, there is a failure, or there are none. */
static ngx_uint_t
ngx_http_selvage_head_turns(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_uint_t creates;

    if (ctx->refusal != NULL) {
        ngx_http_selvage_fail(r, NGX_HTTP_BAD_GATEWAY, ctx->refusal);
        return 0;
    }
    if (!ngx_http_selvage_has_changes(ctx)) {
        return 0;
    }
    if (r->headers_out.status == NGX_HTTP_SWITCHING_PROTOCOLS) {
        /* What follows such a head goes past the filters. */
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "selvage: upstream changes a session with a response that switches protocols");
        ngx_http_selvage_fail(r, NGX_HTTP_BAD_GATEWAY,
                              "the application changes a session while it switches protocols");
        return 0;
    }
    if (ctx->main->node == NULL) {
        ngx_http_selvage_fail_by(r, SELVAGE_STATUS_NOT_READY, NULL);
        return 0;
    }

    /* A session that was there and is gone was ended by another request: it is not made anew. */
    creates = ctx->policy->session >= NGX_HTTP_SELVAGE_ON_CHANGE && ngx_http_selvage_stores(ctx);
    ctx->turn_creates = creates && !ctx->had_session;
    if (ctx->session == NULL && !ctx->has_cookie && !ctx->turn_creates) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "selvage: upstream changes a session, but the request has none: ignored");
        return 0;
    }
    return 1;
}


/* Drops what is held, so that whoever made it may use its buffers again. */
static void
ngx_http_selvage_drop_held(ngx_http_selvage_ctx_t *ctx)
{
    ngx_chain_t *link;

    for (link = ctx->held; link != NULL; link = link->next) {
        link->buf->pos = link->buf->last;
        if (link->buf->in_file) {
            link->buf->file_pos = link->buf->file_last;
        }
    }
    ctx->held = NULL;
    ctx->held_last = 0;
}


/* Holds the head until ngx_http_selvage_release. */
static void
ngx_http_selvage_hold(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ctx->head = NGX_HTTP_SELVAGE_HEAD_HELD;
    r->buffered |= NGX_HTTP_SELVAGE_BUFFERED;
    ctx->release.handler = ngx_http_selvage_release_handler;
    ctx->release.data = r;
    ctx->release.log = r->connection->log;
    if (r->method == NGX_HTTP_HEAD || r->headers_out.status == NGX_HTTP_NO_CONTENT
        || r->headers_out.status == NGX_HTTP_NOT_MODIFIED)
    {
        /* As the filter says that writes the head: whoever makes the response makes no body. */
        r->header_only = 1;
    }
}


static ngx_int_t
ngx_http_selvage_header_filter(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx;

    if (ngx_http_selvage_harvest(r) != NGX_OK) {
        return NGX_ERROR;
    }
    if (r->background) {
        /* A mirror's answer, or a cache's refresh: nobody has asked what it says. */
        return ngx_http_next_header_filter(r);
    }
    ctx = ngx_http_selvage_known_ctx(r);
    if (r != r->main) {
        /* The main request owns the session: it makes the changes with its own. */
        return ngx_http_next_header_filter(r);
    }
    if (ctx == NULL) {
        ngx_http_selvage_strip(r);
        return ngx_http_selvage_next_head(r);
    }
    if (ctx->own) {
        return ngx_http_selvage_pass(r, ctx);
    }
    ngx_http_selvage_strip(r);

    switch (ctx->head) {
    case NGX_HTTP_SELVAGE_HEAD_AHEAD:
        break;
    case NGX_HTTP_SELVAGE_HEAD_HELD:
        /* Another response in the place of the one that is held: it is the one that will leave. */
        ngx_http_selvage_drop_held(ctx);
        return NGX_OK;
    case NGX_HTTP_SELVAGE_HEAD_PASSED:
        return ngx_http_selvage_pass(r, ctx);
    case NGX_HTTP_SELVAGE_HEAD_BROKEN:
        return NGX_ERROR;
    }

    if (ngx_http_selvage_head_turns(r, ctx)) {
        ngx_http_selvage_hold(r, ctx);
        ctx->turn_keeps = 0;
        ctx->in_filter = 1;
        ngx_http_selvage_turn(r, ngx_http_selvage_head_turned);
        ctx->in_filter = 0;
        if (ctx->head == NGX_HTTP_SELVAGE_HEAD_PASSED) {
            return ngx_http_selvage_pass(r, ctx);
        }
        ngx_http_selvage_count(ctx->main, NGX_HTTP_SELVAGE_COUNT_HELD);
        return NGX_OK;
    }
    ngx_http_selvage_close_session(r, ctx);
    if (ctx->failure.code) {
        ngx_http_selvage_hold(r, ctx);
        ngx_post_event(&ctx->release, &ngx_posted_events);
        return NGX_OK;
    }
    return ngx_http_selvage_pass(r, ctx);
}


/* Adds to what is held. Buffers stay their makers'; those without bytes, which makers use again at once, are
 * copied. */
static ngx_int_t
ngx_http_selvage_keep(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_chain_t **end, *link;

    for (end = &ctx->held; *end != NULL; end = &(*end)->next) {
        /* void */
    }
    for (/* void */ ; in != NULL; in = in->next) {
        link = ngx_alloc_chain_link(r->pool);
        if (link == NULL) {
            return NGX_ERROR;
        }
        link->buf = in->buf;
        link->next = NULL;
        if (ngx_buf_size(in->buf) == 0) {
            link->buf = ngx_alloc_buf(r->pool);
            if (link->buf == NULL) {
                return NGX_ERROR;
            }
            *link->buf = *in->buf;
        }
        ctx->held_last |= in->buf->last_buf;
        *end = link;
        end = &link->next;
    }
    return NGX_OK;
}


static ngx_int_t
ngx_http_selvage_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_http_selvage_ctx_t *ctx;

    if (r != r->main) {
        return ngx_http_next_body_filter(r, in);
    }
    ctx = ngx_http_selvage_known_ctx(r);
    if (ctx == NULL) {
        return ngx_http_next_body_filter(r, in);
    }
    switch (ctx->head) {
    case NGX_HTTP_SELVAGE_HEAD_HELD:
        r->buffered |= NGX_HTTP_SELVAGE_BUFFERED;
        return ngx_http_selvage_keep(r, ctx, in) == NGX_OK ? NGX_AGAIN : NGX_ERROR;
    case NGX_HTTP_SELVAGE_HEAD_BROKEN:
        return NGX_ERROR;
    default:
        return ngx_http_next_body_filter(r, in);
    }
}


/* Sends the failure's answer in the place of the held response. */
static ngx_int_t
ngx_http_selvage_replace(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_uint_t whole = ctx->held_last || r->header_only;
    ngx_int_t rc;

    ngx_http_selvage_drop_held(ctx);
    ngx_http_clean_header(r);
    r->header_only = 0;
    r->allow_ranges = 0;
    if (!whole) {
        /* More of the other body will come and must end the connection. */
        r->keepalive = 0;
    }
    rc = ngx_http_selvage_answer_failure(r);
    ctx->head = whole && rc != NGX_ERROR ? NGX_HTTP_SELVAGE_HEAD_PASSED : NGX_HTTP_SELVAGE_HEAD_BROKEN;
    return rc;
}


/* The turn is over: head and body go on, and whoever makes them. */
static void
ngx_http_selvage_release(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_chain_t *held = ctx->held;
    ngx_int_t rc;

    r->buffered &= ~NGX_HTTP_SELVAGE_BUFFERED;
    if (ctx->failure.code) {
        rc = ngx_http_selvage_replace(r, ctx);
    } else {
        rc = ngx_http_selvage_pass(r, ctx);
        if (rc > NGX_OK) {
            /* A later filter wants another answer, and it is too late to ask who makes this one. */
            ngx_http_selvage_fail(r, rc, "the response cannot be given");
            ctx->head = NGX_HTTP_SELVAGE_HEAD_HELD;
            rc = ngx_http_selvage_replace(r, ctx);
        } else if (rc != NGX_ERROR && held != NULL && !r->header_only) {
            ctx->held = NULL;
            rc = ngx_http_next_body_filter(r, held);
        }
    }
    if (rc == NGX_ERROR) {
        ctx->head = NGX_HTTP_SELVAGE_HEAD_BROKEN;
    }
    /* To nginx the client has become writable. */
    r->write_event_handler(r);
}


static void
ngx_http_selvage_head_turned(ngx_http_request_t *r, selvage_status status)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    switch (status) {
    case SELVAGE_STATUS_OK:
        if (ctx->in_filter) {
            ctx->head = NGX_HTTP_SELVAGE_HEAD_PASSED;
            r->buffered &= ~NGX_HTTP_SELVAGE_BUFFERED;
            return;
        }
        break;
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        ngx_http_selvage_fail(r, NGX_HTTP_CONFLICT, "the session has ended while the request was under way");
        break;
    case SELVAGE_STATUS_ELSEWHERE:
        /* The application has been asked: whether it is to be asked again, the client must say. */
        ngx_http_selvage_fail(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                              "the session has moved to another web node while the request was under way");
        break;
    case SELVAGE_STATUS_INVALID:
    case SELVAGE_STATUS_TOO_LARGE:
        ngx_http_selvage_fail_by(r, status, NULL);
        ctx->failure.code = NGX_HTTP_BAD_GATEWAY;
        break;
    default:
        ngx_http_selvage_fail_by(r, status, NULL);
    }
    if (ctx->failure.code) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "selvage: the upstream's changes were not made: %s", ctx->failure.line);
    }
    if (ctx->in_filter) {
        ngx_post_event(&ctx->release, &ngx_posted_events);
        return;
    }
    ngx_http_selvage_release(r, ctx);
}


static void
ngx_http_selvage_release_handler(ngx_event_t *event)
{
    ngx_http_request_t *r = event->data;
    ngx_connection_t *c = r->connection;

    ngx_http_set_log_request(c->log, r);
    ngx_http_selvage_release(r, ngx_http_selvage_ctx(r));
    ngx_http_run_posted_requests(c);
}


ngx_int_t
ngx_http_selvage_filter_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_selvage_header_filter;
    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_selvage_body_filter;
    return NGX_OK;
}
