/*
 * A turn: the session is opened or made, changed as the changes that are waiting say, and committed.
 *
 *   open, or create  ->  destroy                                                                ->  end
 *                    ->  apply  ->  regenerate, if asked for  ->  commit, if anything changed  ->  end
 *
 * The order does not depend on that of the changes: a session that is destroyed takes no other change, and
 * what comes with a regenerated id is committed only under the new id (rule R15). What cannot be applied is
 * known before anything has happened. Every turn ends in exactly one call of ctx->turned, unless the request
 * ends first.
 */
#include "ngx_http_selvage.h"

static void ngx_http_selvage_turn_open(ngx_http_request_t *r, ngx_uint_t locked);
static void ngx_http_selvage_turn_opened(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_turn_missed(ngx_http_request_t *r);
static void ngx_http_selvage_turn_created(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_turn_act(ngx_http_request_t *r);
static void ngx_http_selvage_turn_destroyed(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_turn_renewed(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_turn_commit(ngx_http_request_t *r);
static void ngx_http_selvage_turn_committed(ngx_http_request_t *r, const selvage_completion *done);


/* `turned` gets MISSING if there is no session and none may be created. */
void
ngx_http_selvage_turn(ngx_http_request_t *r, ngx_http_selvage_turned_pt turned)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    ctx->turned = turned;
    ctx->created = 0;
    ctx->renewed = 0;
    if (ctx->session != NULL) {
        ngx_http_selvage_turn_act(r);
    } else if (ctx->has_cookie) {
        ngx_http_selvage_turn_open(r, ctx->turn_keeps);
    } else {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_turn_created);
    }
}


/* Unlocked, a turn waits for others only if it has something to commit. */
static void
ngx_http_selvage_turn_open(ngx_http_request_t *r, ngx_uint_t locked)
{
    ngx_http_selvage_ctx(r)->turn_locked = locked;
    ngx_http_selvage_start(r, locked ? NGX_HTTP_SELVAGE_OPEN_EXCLUSIVE : NGX_HTTP_SELVAGE_OPEN_UNLOCKED,
                           ngx_http_selvage_turn_opened);
}


/* Begins again, locked: what is to be added to is text, perhaps. */
static void
ngx_http_selvage_turn_relock(ngx_http_request_t *r)
{
    ngx_http_selvage_drop_session(ngx_http_selvage_ctx(r));
    ngx_http_selvage_turn_open(r, 1);
}


static void
ngx_http_selvage_turn_end(ngx_http_request_t *r, selvage_status status)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (ctx->changes != NULL) {
        ctx->changes->nelts = 0;
    }
    if (status == SELVAGE_STATUS_OK && ctx->session != NULL && ngx_http_selvage_learn(r, ctx) != NGX_OK) {
        status = SELVAGE_STATUS_INTERNAL;
    }
    if (status != SELVAGE_STATUS_OK || !ctx->turn_keeps) {
        ngx_http_selvage_drop_session(ctx);
    }
    ctx->turned(r, status);
}


static void
ngx_http_selvage_turn_opened(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    switch (done->status) {
    case SELVAGE_STATUS_OK:
        ctx->session = done->session;
        if (ngx_http_selvage_adopt(r, ctx) != NGX_OK) {
            ngx_http_selvage_turn_end(r, SELVAGE_STATUS_INTERNAL);
            return;
        }
        ngx_http_selvage_turn_act(r);
        return;
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        ngx_http_selvage_turn_missed(r);
        return;
    default:
        ctx->failure.elsewhere = done->elsewhere;
        ngx_http_selvage_turn_end(r, done->status);
    }
}


/* There is no session (any more). */
static void
ngx_http_selvage_turn_missed(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    ngx_http_selvage_drop_session(ctx);
    if (ngx_http_selvage_clear_cookie(r, ctx) != NGX_OK) {
        ngx_http_selvage_turn_end(r, SELVAGE_STATUS_INTERNAL);
    } else if (ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_DESTROY)) {
        /* Another request has done it. */
        ctx->had_session = 0;
        ngx_http_selvage_turn_end(r, SELVAGE_STATUS_OK);
    } else if (ctx->turn_creates) {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_turn_created);
    } else {
        ngx_http_selvage_turn_end(r, SELVAGE_STATUS_MISSING);
    }
}


static void
ngx_http_selvage_turn_created(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_turn_end(r, done->status);
        return;
    }
    ctx->session = done->session;
    ctx->created = 1;
    ctx->turn_locked = 1;
    ngx_http_selvage_turn_act(r);
}


static void
ngx_http_selvage_turn_act(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status;

    if (!ctx->created && ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_DESTROY)) {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_DESTROY, ngx_http_selvage_turn_destroyed);
        return;
    }
    status = ngx_http_selvage_apply(ctx);
    if (status == SELVAGE_STATUS_WRONG_TYPE && !ctx->turn_locked) {
        ngx_http_selvage_turn_relock(r);
    } else if (status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_turn_end(r, status);
    } else if (!ctx->created && !ctx->renewed
               && ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_REGENERATE))
    {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_RENEW, ngx_http_selvage_turn_renewed);
    } else {
        ngx_http_selvage_turn_commit(r);
    }
}


static void
ngx_http_selvage_turn_destroyed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (done->status == SELVAGE_STATUS_GONE) {
        ngx_http_selvage_turn_missed(r);
        return;
    }
    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_turn_end(r, done->status);
        return;
    }
    ngx_http_selvage_drop_session(ctx);
    ctx->had_session = 0;
    ngx_http_selvage_turn_end(r, ngx_http_selvage_clear_cookie(r, ctx) == NGX_OK ? SELVAGE_STATUS_OK
                                                                                 : SELVAGE_STATUS_INTERNAL);
}


static void
ngx_http_selvage_turn_renewed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (done->status == SELVAGE_STATUS_GONE) {
        ngx_http_selvage_turn_missed(r);
        return;
    }
    if (done->status != SELVAGE_STATUS_OK) {
        (void) ngx_http_selvage_give_cookie(r, ctx);
        ngx_http_selvage_turn_end(r, done->status);
        return;
    }
    /* Also if what follows fails: the old id is gone, and without the new one the browser has nothing. */
    if (ngx_http_selvage_set_cookie(r, ctx) != NGX_OK) {
        ngx_http_selvage_turn_end(r, SELVAGE_STATUS_INTERNAL);
        return;
    }
    ctx->renewed = 1;
    ctx->committed = 1;
    ngx_http_selvage_turn_commit(r);
}


static void
ngx_http_selvage_turn_commit(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (ctx->changed || ctx->created) {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_COMMIT, ngx_http_selvage_turn_committed);
    } else {
        ngx_http_selvage_turn_end(r, SELVAGE_STATUS_OK);
    }
}


static void
ngx_http_selvage_turn_committed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status = done->status;

    if (status == SELVAGE_STATUS_GONE) {
        /* Unlocked, the session may have been ended by another request meanwhile. */
        ngx_http_selvage_turn_missed(r);
        return;
    }
    if (status == SELVAGE_STATUS_WRONG_TYPE && !ctx->turn_locked) {
        ngx_http_selvage_turn_relock(r);
        return;
    }
    if (status == SELVAGE_STATUS_OK) {
        ctx->committed = 1;
        ctx->had_session = 1;
        if (ctx->created && ngx_http_selvage_set_cookie(r, ctx) != NGX_OK) {
            status = SELVAGE_STATUS_INTERNAL;
        }
    }
    ngx_http_selvage_turn_end(r, status);
}
