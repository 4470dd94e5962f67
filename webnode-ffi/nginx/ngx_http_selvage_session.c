/*
 * A request's context, its cookies, and the session of ordinary locations.
 *
 * An ordinary location's session is looked at before access control and closed before content is produced:
 * the look keeps the session alive, answers "elsewhere", and gives the browser its cookie.
 */
#include "ngx_http_selvage.h"

static void ngx_http_selvage_phase_opened(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_phase_created(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_phase_committed(ngx_http_request_t *r, const selvage_completion *done);


/* Runs when the request ends, however it ends. */
static void
ngx_http_selvage_cleanup(void *data)
{
    ngx_http_selvage_ctx_t *ctx = data;

    if (ctx->operation != NULL) {
        ngx_http_selvage_abandon(ctx->main, ctx->operation);
        ctx->operation = NULL;
    }
    ngx_http_selvage_close_session(ctx);
}


/* The request's context; NULL without memory. An internal redirect clears nginx's pointer to it, so that it
 * is then found by its cleanup. */
ngx_http_selvage_ctx_t *
ngx_http_selvage_ctx(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_get_module_ctx(r, ngx_http_selvage_module);
    ngx_pool_cleanup_t *cleanup;

    if (ctx != NULL) {
        return ctx;
    }
    for (cleanup = r->pool->cleanup; cleanup != NULL; cleanup = cleanup->next) {
        if (cleanup->handler == ngx_http_selvage_cleanup) {
            ngx_http_set_ctx(r, cleanup->data, ngx_http_selvage_module);
            return cleanup->data;
        }
    }

    cleanup = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_selvage_ctx_t));
    if (cleanup == NULL) {
        return NULL;
    }
    ctx = cleanup->data;
    ngx_memzero(ctx, sizeof(ngx_http_selvage_ctx_t));
    ctx->main = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    cleanup->handler = ngx_http_selvage_cleanup;
    ngx_http_set_ctx(r, ctx, ngx_http_selvage_module);
    return ctx;
}


/* Finds the request's session cookie. A wrong or foreign one is no cookie. */
void
ngx_http_selvage_read_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_table_elt_t *header;
#if (nginx_version < 1023000)
    ngx_table_elt_t **headers = r->headers_in.cookies.elts;
    ngx_uint_t i;
#endif

    if (ctx->has_cookie) {
        return;
    }
#if (nginx_version < 1023000)
    for (i = 0; i < r->headers_in.cookies.nelts && !ctx->has_cookie; i++) {
        header = headers[i];
#else
    for (header = r->headers_in.cookie; header != NULL && !ctx->has_cookie; header = header->next) {
#endif
        ctx->has_cookie = selvage_cookie_read(ctx->main->node, (const char *) header->value.data,
                                              header->value.len, &ctx->cookie) == SELVAGE_STATUS_OK;
    }
}


/* Gives the browser the cookie of the open session. */
ngx_int_t
ngx_http_selvage_set_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    selvage_session_info info;
    const char *value;
    size_t len;

    if (selvage_session_describe(ctx->session, &info) != SELVAGE_STATUS_OK
        || selvage_cookie_set(ctx->session, &value, &len) != SELVAGE_STATUS_OK)
    {
        return NGX_ERROR;
    }
    /* After an internal redirect this cookie counts and not the request's. */
    ctx->cookie = info.cookie;
    ctx->has_cookie = 1;
    return ngx_http_selvage_add_header(r, "Set-Cookie", value, len);
}


/* Takes a session that was opened; gives the browser a new cookie if it was adopted. */
ngx_int_t
ngx_http_selvage_adopt(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    selvage_session_info info;

    if (selvage_session_describe(ctx->session, &info) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    return info.needs_cookie ? ngx_http_selvage_set_cookie(r, ctx) : NGX_OK;
}


ngx_int_t
ngx_http_selvage_clear_cookie(ngx_http_request_t *r)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    const char *value;
    size_t len;

    if (selvage_cookie_clear(smcf->node, &value, &len) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_add_header(r, "Set-Cookie", value, len);
}


void
ngx_http_selvage_close_session(ngx_http_selvage_ctx_t *ctx)
{
    (void) selvage_session_close(ctx->session);
    ctx->session = NULL;
}


/* Ends the look: the phase handler goes on from its status, at once or by being run again. */
static void
ngx_http_selvage_phase_end(ngx_http_request_t *r, selvage_status status)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    ngx_http_selvage_close_session(ctx);
    ctx->phase_done = 1;
    ctx->phase_status = status;
    if (ctx->phase_waits) {
        ctx->phase_waits = 0;
        ngx_http_core_run_phases(r);
    }
}


static void
ngx_http_selvage_phase_opened(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_http_get_module_loc_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_int_t rc = NGX_OK;

    switch (done->status) {
    case SELVAGE_STATUS_OK:
        ctx->session = done->session;
        rc = ngx_http_selvage_adopt(r, ctx);
        break;

    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        if (slcf->session == NGX_HTTP_SELVAGE_CREATE) {
            ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_phase_created);
            return;
        }
        rc = ngx_http_selvage_clear_cookie(r);
        break;

    default:
        ctx->elsewhere = done->elsewhere;
        ngx_http_selvage_phase_end(r, done->status);
        return;
    }
    ngx_http_selvage_phase_end(r, rc == NGX_OK ? SELVAGE_STATUS_OK : SELVAGE_STATUS_INTERNAL);
}


static void
ngx_http_selvage_phase_created(ngx_http_request_t *r, const selvage_completion *done)
{
    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_phase_end(r, done->status);
        return;
    }
    ngx_http_selvage_ctx(r)->session = done->session;
    ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_COMMIT, ngx_http_selvage_phase_committed);
}


static void
ngx_http_selvage_phase_committed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status = done->status;

    if (status == SELVAGE_STATUS_OK) {
        ctx->committed = 1;
        ctx->copies = done->commit.copies;
        if (ngx_http_selvage_set_cookie(r, ctx) != NGX_OK
            || ngx_http_selvage_add_commit_headers(r) != NGX_OK)
        {
            status = SELVAGE_STATUS_INTERNAL;
        }
    }
    ngx_http_selvage_phase_end(r, status);
}


ngx_int_t
ngx_http_selvage_phase_handler(ngx_http_request_t *r)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_http_get_module_loc_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx;
    ngx_int_t rc;

    if (r != r->main || slcf->session == NGX_HTTP_SELVAGE_OFF || slcf->api) {
        return NGX_DECLINED;
    }
    ctx = ngx_http_selvage_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    if (ctx->phase_waits) {
        /* The connection became writable, which is no news. */
        return NGX_AGAIN;
    }

    if (!ctx->phase_done) {
        if (ctx->main->node == NULL) {
            ctx->phase_done = 1;
            ctx->phase_status = SELVAGE_STATUS_NOT_READY;
        } else {
            ngx_http_selvage_read_cookie(r, ctx);
            if (ctx->has_cookie) {
                ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_OPEN_READ_ONLY, ngx_http_selvage_phase_opened);
            } else if (slcf->session == NGX_HTTP_SELVAGE_CREATE) {
                ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_phase_created);
            } else {
                return NGX_DECLINED;
            }
        }
    }
    if (!ctx->phase_done) {
        ctx->phase_waits = 1;
        return NGX_AGAIN;
    }
    if (ctx->phase_status == SELVAGE_STATUS_OK) {
        return NGX_DECLINED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc == NGX_OK) {
        rc = ngx_http_selvage_answer_status(r, ctx->phase_status, &ctx->elsewhere);
    }
    ngx_http_finalize_request(r, rc);
    return NGX_DONE;
}
