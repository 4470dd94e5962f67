/*
 * Changes of a session: those of a location's directives are gathered, those of response headers come from
 * header.c, and both are applied in the same way.
 *
 * A change that would leave everything as it is is none: then nothing is committed and pushed.
 */
#include "ngx_http_selvage.h"


/* Reads a whole number in decimal. */
ngx_int_t
ngx_http_selvage_number(const u_char *text, size_t len, int64_t *number)
{
    const u_char *end = text + len;
    ngx_uint_t minus = 0;
    int64_t sum = 0;

    if (text < end && (*text == '-' || *text == '+')) {
        minus = *text++ == '-';
    }
    if (text == end) {
        return NGX_ERROR;
    }
    for (/* void */ ; text < end; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(sum, 10, &sum)
            || __builtin_add_overflow(sum, minus ? '0' - *text : *text - '0', &sum))
        {
            return NGX_ERROR;
        }
    }
    *number = sum;
    return NGX_OK;
}


/* A new change at the end of those that are to be made. */
ngx_http_selvage_change_t *
ngx_http_selvage_push_change(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_http_selvage_change_t *change;

    if (ctx->changes == NULL) {
        ctx->changes = ngx_array_create(r->pool, 4, sizeof(ngx_http_selvage_change_t));
        if (ctx->changes == NULL) {
            return NULL;
        }
    }
    change = ngx_array_push(ctx->changes);
    if (change != NULL) {
        ngx_memzero(change, sizeof(ngx_http_selvage_change_t));
    }
    return change;
}


ngx_uint_t
ngx_http_selvage_has_changes(ngx_http_selvage_ctx_t *ctx)
{
    return ctx->changes != NULL && ctx->changes->nelts > 0;
}


ngx_uint_t
ngx_http_selvage_has_change(ngx_http_selvage_ctx_t *ctx, ngx_http_selvage_change_e kind)
{
    ngx_http_selvage_change_t *change;
    ngx_uint_t i;

    if (ctx->changes == NULL) {
        return 0;
    }
    change = ctx->changes->elts;
    for (i = 0; i < ctx->changes->nelts; i++) {
        if (change[i].kind == kind) {
            return 1;
        }
    }
    return 0;
}


/* Whether the changes put something into a session that did not exist before. */
ngx_uint_t
ngx_http_selvage_stores(ngx_http_selvage_ctx_t *ctx)
{
    return (ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_SET)
            || ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_INCR))
           && !ngx_http_selvage_has_change(ctx, NGX_HTTP_SELVAGE_CHANGE_DESTROY);
}


/* Whether a condition's value is neither empty nor 0, as nginx's own `if=`; an error counts as true. */
ngx_uint_t
ngx_http_selvage_holds(ngx_http_request_t *r, ngx_http_complex_value_t *value)
{
    ngx_str_t text;

    if (ngx_http_complex_value(r, value, &text) != NGX_OK) {
        return 1;
    }
    return text.len > 0 && !(text.len == 1 && text.data[0] == '0');
}


/* Makes a change of a directive. */
static ngx_int_t
ngx_http_selvage_gather_rule(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx,
    ngx_http_selvage_rule_t *rule)
{
    ngx_http_selvage_change_t *change;

    if (rule->condition != NULL && !ngx_http_selvage_holds(r, rule->condition)) {
        return NGX_OK;
    }
    change = ngx_http_selvage_push_change(r, ctx);
    if (change == NULL) {
        return NGX_ERROR;
    }
    change->kind = rule->kind;
    change->name = rule->name;
    change->by = 1;
    if (rule->value == NULL) {
        return NGX_OK;
    }
    if (ngx_http_complex_value(r, rule->value, &change->value) != NGX_OK) {
        return NGX_ERROR;
    }
    if (rule->kind == NGX_HTTP_SELVAGE_CHANGE_INCR
        && ngx_http_selvage_number(change->value.data, change->value.len, &change->by) != NGX_OK)
    {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0, "selvage: \"%V\" cannot be added to \"%V\"",
                      &change->value, &change->name);
        return NGX_DECLINED;
    }
    return NGX_OK;
}


/* Collects the changes of a location's directives, once in a request. NGX_DECLINED: a value is not what the
 * directive needs. */
ngx_int_t
ngx_http_selvage_gather(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx,
    ngx_http_selvage_loc_conf_t *slcf)
{
    ngx_http_selvage_rule_t *rule;
    ngx_array_t **carried;
    ngx_uint_t i;
    ngx_int_t rc;

    if (slcf->rules == NULL) {
        return NGX_OK;
    }
    if (ctx->carried == NULL) {
        ctx->carried = ngx_array_create(r->pool, 2, sizeof(ngx_array_t *));
        if (ctx->carried == NULL) {
            return NGX_ERROR;
        }
    }
    carried = ctx->carried->elts;
    for (i = 0; i < ctx->carried->nelts; i++) {
        if (carried[i] == slcf->rules) {
            return NGX_OK;
        }
    }
    carried = ngx_array_push(ctx->carried);
    if (carried == NULL) {
        return NGX_ERROR;
    }
    *carried = slcf->rules;

    rule = slcf->rules->elts;
    for (i = 0; i < slcf->rules->nelts; i++) {
        rc = ngx_http_selvage_gather_rule(r, ctx, &rule[i]);
        if (rc != NGX_OK) {
            return rc;
        }
    }
    return NGX_OK;
}


static selvage_status
ngx_http_selvage_apply_set(ngx_http_selvage_ctx_t *ctx, ngx_http_selvage_change_t *change)
{
    const char *name = (const char *) change->name.data;
    selvage_status status;
    const uint8_t *bytes;
    size_t len;

    /* By what it looks like: a number that is set to its own digits stays a number. */
    status = selvage_session_render(ctx->session, name, change->name.len, &bytes, &len, NULL);
    if (status == SELVAGE_STATUS_OK && len == change->value.len
        && ngx_memcmp(bytes, change->value.data, len) == 0)
    {
        return SELVAGE_STATUS_OK;
    }
    ctx->changed = 1;
    /* The library says what is UTF-8. A bad name is refused by the second call, too. */
    status = selvage_session_set_text(ctx->session, name, change->name.len, (const char *) change->value.data,
                                      change->value.len);
    if (status == SELVAGE_STATUS_INVALID) {
        status = selvage_session_set_bytes(ctx->session, name, change->name.len, change->value.data,
                                           change->value.len);
    }
    return status;
}


static selvage_status
ngx_http_selvage_apply_incr(ngx_http_selvage_ctx_t *ctx, ngx_http_selvage_change_t *change)
{
    const char *name = (const char *) change->name.data;
    selvage_status status;
    selvage_value value;
    int64_t sum;

    ctx->changed = 1;
    status = selvage_session_incr(ctx->session, name, change->name.len, change->by, NULL);
    if (status != SELVAGE_STATUS_WRONG_TYPE || !ctx->turn_locked) {
        return status;
    }
    /* In headers and directives numbers are text. Without the lock an increment of another request would be
     * written over. */
    if (selvage_session_read(ctx->session, name, change->name.len, &value) != SELVAGE_STATUS_OK
        || value.kind != SELVAGE_TYPE_TEXT
        || ngx_http_selvage_number(value.bytes, value.bytes_len, &sum) != NGX_OK
        || __builtin_add_overflow(sum, change->by, &sum))
    {
        return SELVAGE_STATUS_WRONG_TYPE;
    }
    return selvage_session_set_i64(ctx->session, name, change->name.len, sum);
}


static selvage_status
ngx_http_selvage_apply_owner(ngx_http_selvage_ctx_t *ctx, ngx_http_selvage_change_t *change)
{
    const char *owner = (const char *) change->value.data;
    selvage_status status;
    const char *now;
    size_t len;

    status = selvage_session_owner(ctx->session, &now, &len);
    if (status == SELVAGE_STATUS_MISSING) {
        len = 0;
    } else if (status != SELVAGE_STATUS_OK) {
        return status;
    }
    if (len == change->value.len && (len == 0 || ngx_memcmp(now, owner, len) == 0)) {
        return SELVAGE_STATUS_OK;
    }
    ctx->changed = 1;
    return selvage_session_set_owner(ctx->session, change->value.len ? owner : NULL, change->value.len);
}


/* Applies the changes that are to be made to the open session, uncommitted, up to the first that fails. */
selvage_status
ngx_http_selvage_apply(ngx_http_selvage_ctx_t *ctx)
{
    ngx_http_selvage_change_t *change;
    selvage_status status = SELVAGE_STATUS_OK;
    ngx_uint_t i;

    ctx->changed = 0;
    if (ctx->changes == NULL) {
        return SELVAGE_STATUS_OK;
    }
    change = ctx->changes->elts;
    for (i = 0; i < ctx->changes->nelts && status == SELVAGE_STATUS_OK; i++) {
        switch (change[i].kind) {
        case NGX_HTTP_SELVAGE_CHANGE_SET:
            status = ngx_http_selvage_apply_set(ctx, &change[i]);
            break;
        case NGX_HTTP_SELVAGE_CHANGE_INCR:
            status = ngx_http_selvage_apply_incr(ctx, &change[i]);
            break;
        case NGX_HTTP_SELVAGE_CHANGE_UNSET:
            status = selvage_session_remove(ctx->session, (const char *) change[i].name.data,
                                            change[i].name.len);
            if (status == SELVAGE_STATUS_MISSING) {
                status = SELVAGE_STATUS_OK;
            } else {
                ctx->changed = 1;
            }
            break;
        case NGX_HTTP_SELVAGE_CHANGE_OWNER:
            status = ngx_http_selvage_apply_owner(ctx, &change[i]);
            break;
        case NGX_HTTP_SELVAGE_CHANGE_REGENERATE:
        case NGX_HTTP_SELVAGE_CHANGE_DESTROY:
            break;
        }
    }
    return status;
}
