/*
 * Responses of the module: every answer carries the node's name, every answer that committed the number of
 * copies, and every failure the library's own sentence as one line of text.
 *
 * 503 with Retry-After is for what passes by itself (busy, timeout, not joined); 507 for a full cache, so
 * that an operator can tell it from those.
 */
#include "ngx_http_selvage.h"


/* Adds a response header; the name must be a literal, the value is copied. */
ngx_int_t
ngx_http_selvage_add_header(ngx_http_request_t *r, const char *name, const char *value, size_t len)
{
    ngx_table_elt_t *header = ngx_list_push(&r->headers_out.headers);
    u_char *copy = ngx_pnalloc(r->pool, len ? len : 1);

    if (header == NULL || copy == NULL) {
        return NGX_ERROR;
    }
    ngx_memcpy(copy, value, len);
    header->hash = 1;
#if (nginx_version >= 1023000)
    header->next = NULL;
#endif
    header->key.data = (u_char *) name;
    header->key.len = ngx_strlen(name);
    header->value.data = copy;
    header->value.len = len;
    return NGX_OK;
}


/* Adds what the head of any response says of the session: the cookie, if the browser needs a new one, and
 * after a commit the node and the number of copies. Every answer of the module's own names its node. */
ngx_int_t
ngx_http_selvage_add_session_headers(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    const char *name = ctx->main->info.name;
    u_char copies[NGX_INT32_LEN];
    u_char *end;

    if (ctx->set_cookie.len > 0
        && ngx_http_selvage_add_header(r, "Set-Cookie", (char *) ctx->set_cookie.data, ctx->set_cookie.len)
           != NGX_OK)
    {
        return NGX_ERROR;
    }
    if ((ctx->committed || ctx->own) && ctx->main->node != NULL
        && ngx_http_selvage_add_header(r, "Selvage-Node", name, ngx_strlen(name)) != NGX_OK)
    {
        return NGX_ERROR;
    }
    if (!ctx->committed) {
        return NGX_OK;
    }
    end = ngx_sprintf(copies, "%uD", ctx->copies);
    return ngx_http_selvage_add_header(r, "Selvage-Copies", (char *) copies, end - copies);
}


static ngx_int_t
ngx_http_selvage_add_answer_headers(ngx_http_request_t *r)
{
    if (ngx_http_selvage_add_header(r, "Cache-Control", "no-store", 8) != NGX_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_add_header(r, "X-Content-Type-Options", "nosniff", 7);
}


/* Sends a whole answer; body is NULL for 204. What body names must live as long as the request. */
ngx_int_t
ngx_http_selvage_answer(ngx_http_request_t *r, ngx_uint_t status, const char *type, ngx_str_t *body)
{
    ngx_chain_t out;
    ngx_buf_t *b;
    ngx_int_t rc;

    if (ngx_http_selvage_add_answer_headers(r) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    r->headers_out.status = status;
    if (body == NULL) {
        r->header_only = 1;
        r->headers_out.content_length_n = -1;
        return ngx_http_selvage_send_head(r);
    }

    r->headers_out.content_length_n = body->len;
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    if (ngx_strcmp(type, "text/plain") == 0) {
        ngx_str_set(&r->headers_out.charset, "utf-8");
    }
    rc = ngx_http_selvage_send_head(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }
    b->pos = body->data;
    b->last = body->data + body->len;
    b->memory = body->len > 0;
    b->last_buf = 1;
    b->last_in_chain = 1;
    out.buf = b;
    out.next = NULL;
    return ngx_http_selvage_send_body(r, &out);
}


/* Sends one line of text. */
ngx_int_t
ngx_http_selvage_answer_line(ngx_http_request_t *r, ngx_uint_t status, const char *line)
{
    ngx_str_t body;

    body.len = ngx_strlen(line) + 1;
    body.data = ngx_pnalloc(r->pool, body.len);
    if (body.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    ngx_memcpy(body.data, line, body.len - 1);
    body.data[body.len - 1] = '\n';
    return ngx_http_selvage_answer(r, status, "text/plain", &body);
}


ngx_uint_t
ngx_http_selvage_http_status(selvage_status status)
{
    switch (status) {
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        return NGX_HTTP_NOT_FOUND;
    case SELVAGE_STATUS_WRONG_TYPE:
        return NGX_HTTP_CONFLICT;
    case SELVAGE_STATUS_ELSEWHERE:
        return NGX_HTTP_MISDIRECTED_REQUEST;
    case SELVAGE_STATUS_INVALID:
        return NGX_HTTP_BAD_REQUEST;
    case SELVAGE_STATUS_TOO_LARGE:
        return NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
    case SELVAGE_STATUS_FULL:
        return NGX_HTTP_INSUFFICIENT_STORAGE;
    case SELVAGE_STATUS_READ_ONLY:
    case SELVAGE_STATUS_BUSY:
    case SELVAGE_STATUS_TIMEOUT:
    case SELVAGE_STATUS_OWNERSHIP_LOST:
    case SELVAGE_STATUS_LOCK_LOST:
    case SELVAGE_STATUS_NOT_READY:
    case SELVAGE_STATUS_NOT_YET:
    case SELVAGE_STATUS_UNREACHABLE:
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    default:
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
}


/* Says why the request is going to be answered by the module; the line must live as long as the request. */
void
ngx_http_selvage_fail(ngx_http_request_t *r, ngx_uint_t code, const char *line)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    ctx->failure.code = code;
    ctx->failure.line = line;
}


/* The same by what a call of the library ended with, right after that call. `elsewhere` may be NULL unless
 * that is the status. */
void
ngx_http_selvage_fail_by(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    char why[1024];
    size_t len;
    u_char *line;

    if (status == SELVAGE_STATUS_ELSEWHERE) {
        ctx->failure.elsewhere = *elsewhere;
    }
    if (status < SELVAGE_STATUS_NULL) {
        ngx_http_selvage_fail(r, ngx_http_selvage_http_status(status), selvage_status_text(status));
    } else if (ctx->main->node == NULL) {
        ngx_http_selvage_fail(r, ngx_http_selvage_http_status(status),
                              "this worker process could not attach to its node yet");
    } else if (status == SELVAGE_STATUS_READ_ONLY) {
        /* Who wants to change a session opens it so; only an id that was given up opens read-only then. */
        ngx_http_selvage_fail(r, ngx_http_selvage_http_status(status),
                              "the session has been given a new id, by which it can be changed");
    } else {
        (void) selvage_last_error(why, sizeof(why));
        len = ngx_strlen(why) + 1;
        line = ngx_pnalloc(r->pool, len);
        if (line != NULL) {
            ngx_memcpy(line, why, len);
        }
        ngx_http_selvage_fail(r, ngx_http_selvage_http_status(status),
                              line != NULL ? (char *) line : selvage_status_text(status));
    }
    if (ctx->failure.code == NGX_HTTP_INTERNAL_SERVER_ERROR) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "selvage: %s: %s", selvage_status_text(status),
                      ctx->failure.line);
    }
}


/* Answers the failure of which one of the above has said why. */
ngx_int_t
ngx_http_selvage_answer_failure(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_http_selvage_failure_t *failure = &ctx->failure;
    ngx_uint_t code = failure->code;

    ngx_http_selvage_count_failure(ctx->main, code);
    if (code == NGX_HTTP_MISDIRECTED_REQUEST
        && ngx_http_selvage_add_header(r, "Selvage-Elsewhere", failure->elsewhere.text,
                                       ngx_strlen(failure->elsewhere.text)) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    if ((code == NGX_HTTP_SERVICE_UNAVAILABLE || code == NGX_HTTP_INSUFFICIENT_STORAGE)
        && ngx_http_selvage_add_header(r, "Retry-After", "1", 1) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    return ngx_http_selvage_answer_line(r, code, failure->line);
}


/* Answers with what a call of the library ended with; see ngx_http_selvage_fail_by. */
ngx_int_t
ngx_http_selvage_answer_status(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere)
{
    ngx_http_selvage_fail_by(r, status, elsewhere);
    return ngx_http_selvage_answer_failure(r);
}
