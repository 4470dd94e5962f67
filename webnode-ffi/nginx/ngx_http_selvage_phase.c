/*
 * The session of ordinary locations, before content is produced.
 *
 * The look, before `if`, `return` and access control, reads the session: it keeps it alive, answers
 * "elsewhere" before anybody else is asked, and fills the variables. It locks nothing and makes nothing.
 *
 * The turn, after access control, carries out the location's changes, makes the session where one is to be
 * made, and takes the lock where the location wants it. Where there is nothing of this to do there is no
 * turn.
 *
 * A request whose session cannot be had is answered by the module.
 */
#include "ngx_http_selvage.h"

static void ngx_http_selvage_looked(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_phase_turned(ngx_http_request_t *r, selvage_status status);


static ngx_uint_t
ngx_http_selvage_excludes(ngx_http_request_t *r, ngx_http_selvage_exclude_t *exclude)
{
    if (exclude->value != NULL) {
        return ngx_http_selvage_holds(r, exclude->value);
    }
#if (NGX_PCRE)
    if (exclude->regex != NULL) {
        return ngx_regex_exec(exclude->regex, &r->uri, NULL, 0) >= 0;
    }
#endif
    if (exclude->whole && r->uri.len != exclude->uri.len) {
        return 0;
    }
    return r->uri.len >= exclude->uri.len
           && ngx_strncmp(r->uri.data, exclude->uri.data, exclude->uri.len) == 0;
}


/* Whether a request of this location uses sessions. */
static ngx_uint_t
ngx_http_selvage_applies(ngx_http_request_t *r, ngx_http_selvage_loc_conf_t *slcf)
{
    ngx_http_selvage_exclude_t *exclude;
    ngx_uint_t i;

    if (slcf->session == NGX_HTTP_SELVAGE_OFF) {
        return 0;
    }
    if (slcf->excludes != NULL) {
        exclude = slcf->excludes->elts;
        for (i = 0; i < slcf->excludes->nelts; i++) {
            if (ngx_http_selvage_excludes(r, &exclude[i])) {
                return 0;
            }
        }
    }
    return 1;
}


/* Answers instead of the location's content. */
static ngx_int_t
ngx_http_selvage_phase_fail(ngx_http_request_t *r)
{
    ngx_int_t rc = ngx_http_discard_request_body(r);

    ngx_http_selvage_drop_session(ngx_http_selvage_ctx(r));
    if (rc == NGX_OK) {
        rc = ngx_http_selvage_answer_failure(r);
    }
    ngx_http_finalize_request(r, rc);
    return NGX_DONE;
}


/* The phase handler is run again if it has returned meanwhile. */
static void
ngx_http_selvage_go_on(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    if (ctx->waits) {
        ctx->waits = 0;
        ngx_http_core_run_phases(r);
    }
}


/* Looks at the session, once in a request. NGX_DECLINED: the request goes on. */
static ngx_int_t
ngx_http_selvage_look(ngx_http_request_t *r, ngx_http_selvage_loc_conf_t *slcf)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    if (ctx->waits) {
        /* The connection became writable, which is no news. */
        return NGX_DONE;
    }

    ctx->policy = slcf;
    if (!ctx->looked) {
        if (ctx->main->node == NULL) {
            ngx_http_selvage_fail_by(r, SELVAGE_STATUS_NOT_READY, NULL);
        } else {
            ngx_http_selvage_read_cookie(r, ctx);
            if (ctx->has_cookie) {
                ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_OPEN_READ_ONLY, ngx_http_selvage_looked);
                if (!ctx->looked) {
                    ctx->waits = 1;
                    return NGX_DONE;
                }
            }
        }
        ctx->looked = 1;
    }
    return ctx->failure.code ? ngx_http_selvage_phase_fail(r) : NGX_DECLINED;
}


ngx_int_t
ngx_http_selvage_look_handler(ngx_http_request_t *r)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_http_get_module_loc_conf(r, ngx_http_selvage_module);

    if (r != r->main || r->post_action) {
        return NGX_DECLINED;
    }
    if (ngx_http_selvage_harvest(r) != NGX_OK) {
        /* Of an upstream that has redirected to this location. */
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    if (slcf->api || !ngx_http_selvage_applies(r, slcf)) {
        return NGX_DECLINED;
    }
    return ngx_http_selvage_look(r, slcf);
}


static void
ngx_http_selvage_looked(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_int_t rc = NGX_OK;

    switch (done->status) {
    case SELVAGE_STATUS_OK:
        ctx->session = done->session;
        rc = ngx_http_selvage_adopt(r, ctx);
        ngx_http_selvage_close_session(r, ctx);
        break;
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        rc = ngx_http_selvage_clear_cookie(r, ctx);
        break;
    default:
        ngx_http_selvage_fail_by(r, done->status, &done->elsewhere);
    }
    if (rc != NGX_OK) {
        ngx_http_selvage_fail(r, NGX_HTTP_INTERNAL_SERVER_ERROR, "no memory for the session's data");
    }
    ctx->looked = 1;
    ngx_http_selvage_go_on(r, ctx);
}


/* With the session locked nothing waits for a slow client: its body is read before. */
static void
ngx_http_selvage_body_read(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx(r)->body_read = 1;
    r->preserve_body = 1;
    r->write_event_handler = ngx_http_core_run_phases;
    ngx_http_core_run_phases(r);
}


static ngx_int_t
ngx_http_selvage_read_body(ngx_http_request_t *r)
{
    ngx_int_t rc = ngx_http_read_client_request_body(r, ngx_http_selvage_body_read);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }
    ngx_http_finalize_request(r, NGX_DONE);
    return NGX_DONE;
}


/* Whether a session is to be made if the request has none. */
static ngx_uint_t
ngx_http_selvage_creates(ngx_http_selvage_ctx_t *ctx)
{
    switch (ctx->policy->session) {
    case NGX_HTTP_SELVAGE_CREATE:
        /* Nothing is made only to be destroyed. */
        return !ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_DESTROY);
    case NGX_HTTP_SELVAGE_ON_CHANGE:
        return ngx_http_selvage_stores(ctx);
    default:
        return 0;
    }
}


/* Begins the turn, if there is anything to do; NGX_DECLINED if there is not. */
static ngx_int_t
ngx_http_selvage_begin_turn(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_uint_t locks = ctx->policy->lock == NGX_HTTP_SELVAGE_LOCK_ON;

    ctx->turn_creates = ngx_http_selvage_creates(ctx);
    if (!ctx->has_cookie && !ctx->turn_creates) {
        if (ctx->changes != NULL) {
            ctx->changes->nelts = 0;
        }
        return NGX_DECLINED;
    }
    if (ctx->has_cookie && !ngx_http_selvage_has_changes(ctx) && !(locks && ctx->session == NULL)) {
        return NGX_DECLINED;
    }
    if (locks && !ctx->body_read && (r->headers_in.content_length_n > 0 || r->headers_in.chunked)) {
        return ngx_http_selvage_read_body(r);
    }
    ctx->turn_keeps = locks || ctx->session != NULL;
    ngx_http_selvage_turn(r, ngx_http_selvage_phase_turned);
    return NGX_OK;
}


ngx_int_t
ngx_http_selvage_turn_handler(ngx_http_request_t *r)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_http_get_module_loc_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx;
    ngx_int_t rc;

    if (r != r->main || r->post_action || slcf->api || !ngx_http_selvage_applies(r, slcf)) {
        return NGX_DECLINED;
    }
    /* Has been done, unless an `if` inside of the location switches sessions on. */
    rc = ngx_http_selvage_look(r, slcf);
    if (rc != NGX_DECLINED) {
        return rc;
    }

    ctx = ngx_http_selvage_ctx(r);
    if (ctx->refusal != NULL) {
        /* Of an upstream that has redirected to this location, or has granted access to it. */
        ngx_http_selvage_fail(r, NGX_HTTP_BAD_GATEWAY, ctx->refusal);
        return ngx_http_selvage_phase_fail(r);
    }
    if (!ctx->turn_over) {
        rc = ngx_http_selvage_gather(r, ctx, slcf);
        if (rc == NGX_ERROR) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
        if (rc == NGX_DECLINED) {
            ngx_http_selvage_fail(r, NGX_HTTP_BAD_REQUEST, "what is to be added is not a whole number");
            return ngx_http_selvage_phase_fail(r);
        }
        rc = ngx_http_selvage_begin_turn(r, ctx);
        if (rc != NGX_OK) {
            return rc;
        }
        if (!ctx->turn_over) {
            ctx->waits = 1;
            return NGX_DONE;
        }
    }
    ctx->turn_over = 0;
    return ctx->failure.code ? ngx_http_selvage_phase_fail(r) : NGX_DECLINED;
}


static void
ngx_http_selvage_phase_turned(ngx_http_request_t *r, selvage_status status)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    /* Without a session and without one to be made there is nothing to change. */
    if (status != SELVAGE_STATUS_OK && status != SELVAGE_STATUS_MISSING) {
        ngx_http_selvage_fail_by(r, status, &ctx->failure.elsewhere);
    }
    ctx->turn_over = 1;
    ngx_http_selvage_go_on(r, ctx);
}
