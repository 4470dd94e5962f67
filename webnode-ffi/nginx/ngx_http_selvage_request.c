/*
 * A request's context: its cookies, and what is known of its session.
 *
 * The context is the main request's and its subrequests', and survives internal redirects.
 */
#include "ngx_http_selvage.h"


/* Runs when the request ends, however it ends. */
static void
ngx_http_selvage_cleanup(void *data)
{
    ngx_http_selvage_ctx_t *ctx = data;

    if (ctx->operation != NULL) {
        ngx_http_selvage_abandon(ctx->main, ctx->operation);
        ctx->operation = NULL;
    }
    if (ctx->release.posted) {
        ngx_delete_posted_event(&ctx->release);
    }
    ngx_http_selvage_drop_session(ctx);
}


/* The request's context, NULL if it has none. An internal redirect clears nginx's pointer to it, and a
 * subrequest never had one: then it is found by its cleanup, in the pool that they share. */
ngx_http_selvage_ctx_t *
ngx_http_selvage_known_ctx(ngx_http_request_t *r)
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
    return NULL;
}


/* The request's context, a new one if need be; NULL without memory. */
ngx_http_selvage_ctx_t *
ngx_http_selvage_ctx(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);
    ngx_pool_cleanup_t *cleanup;

    if (ctx != NULL) {
        return ctx;
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


/* Keeps the Set-Cookie header for the response's head, whichever handler makes it. */
static ngx_int_t
ngx_http_selvage_keep_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx, const char *value,
    size_t len)
{
    ctx->set_cookie.data = ngx_pnalloc(r->pool, len);
    if (ctx->set_cookie.data == NULL) {
        ctx->set_cookie.len = 0;
        return NGX_ERROR;
    }
    ngx_memcpy(ctx->set_cookie.data, value, len);
    ctx->set_cookie.len = len;
    return NGX_OK;
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
    /* From now on this cookie counts and not the request's. */
    ctx->cookie = info.cookie;
    ctx->has_cookie = 1;
    return ngx_http_selvage_keep_cookie(r, ctx, value, len);
}


/* Takes a session that was opened; gives the browser a new cookie if it was adopted. */
ngx_int_t
ngx_http_selvage_adopt(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ctx->had_session = 1;
    return ngx_http_selvage_give_cookie(r, ctx);
}


/* Gives the browser the cookie of the open session if it needs it, whatever is answered otherwise: a session
 * that was being given a new id may have it although that failed, and then the old one is gone. */
ngx_int_t
ngx_http_selvage_give_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    selvage_session_info info;

    if (selvage_session_describe(ctx->session, &info) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    return info.needs_cookie ? ngx_http_selvage_set_cookie(r, ctx) : NGX_OK;
}


/* The session is gone, or never was: the browser's cookie goes, too. */
ngx_int_t
ngx_http_selvage_clear_cookie(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    const char *value;
    size_t len;

    ctx->has_cookie = 0;
    ngx_http_selvage_forget(ctx);
    if (selvage_cookie_clear(ctx->main->node, &value, &len) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_keep_cookie(r, ctx, value, len);
}


/* Copies what variables may show from the open session (invariant 4). */
ngx_int_t
ngx_http_selvage_learn(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    selvage_session_info info;
    size_t id_len;
    u_char *at;

    if (selvage_session_describe(ctx->session, &info) != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    id_len = ngx_strlen(info.id);
    at = ngx_pnalloc(r->pool, id_len + NGX_INT32_LEN + 1 + NGX_INT64_LEN);
    if (at == NULL) {
        return NGX_ERROR;
    }
    ctx->id.data = at;
    ctx->id.len = id_len;
    at = ngx_cpymem(at, info.id, id_len);
    ctx->version.data = at;
    ctx->version.len = ngx_sprintf(at, "%uD.%uL", info.version_epoch, info.version_counter) - at;
    ctx->copies = info.copies;
    return ngx_http_selvage_learn_attributes(r, ctx);
}


/* The session is not this request's any more. */
void
ngx_http_selvage_forget(ngx_http_selvage_ctx_t *ctx)
{
    ngx_str_null(&ctx->id);
    ngx_str_null(&ctx->version);
    ctx->attributes = NULL;
    ctx->copies = 0;
}


/* Closes the session, if it is open; what is known of it stays. */
void
ngx_http_selvage_close_session(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    if (ctx->session == NULL) {
        return;
    }
    if (ngx_http_selvage_learn(r, ctx) != NGX_OK) {
        /* Destroyed, or no memory: nothing is known rather than something old. */
        ngx_http_selvage_forget(ctx);
    }
    ngx_http_selvage_drop_session(ctx);
}


/* Closes the session without a look at it: after a failure it may show changes that nobody has committed. */
void
ngx_http_selvage_drop_session(ngx_http_selvage_ctx_t *ctx)
{
    (void) selvage_session_close(ctx->session);
    ctx->session = NULL;
}
