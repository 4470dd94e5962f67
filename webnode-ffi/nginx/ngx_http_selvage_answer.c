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


static ngx_int_t
ngx_http_selvage_add_node_header(ngx_http_request_t *r)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);

    return ngx_http_selvage_add_header(r, "Selvage-Node", smcf->info.name, ngx_strlen(smcf->info.name));
}


static ngx_int_t
ngx_http_selvage_add_copies_header(ngx_http_request_t *r)
{
    u_char copies[NGX_INT_T_LEN];
    u_char *end = ngx_sprintf(copies, "%uD", ngx_http_selvage_ctx(r)->copies);

    return ngx_http_selvage_add_header(r, "Selvage-Copies", (char *) copies, end - copies);
}


/* For an answer that another handler gives. */
ngx_int_t
ngx_http_selvage_add_commit_headers(ngx_http_request_t *r)
{
    if (ngx_http_selvage_add_node_header(r) != NGX_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_add_copies_header(r);
}


static ngx_int_t
ngx_http_selvage_add_answer_headers(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (ngx_http_selvage_add_header(r, "Cache-Control", "no-store", 8) != NGX_OK
        || ngx_http_selvage_add_header(r, "X-Content-Type-Options", "nosniff", 7) != NGX_OK)
    {
        return NGX_ERROR;
    }
    if (ctx->main->node != NULL && ngx_http_selvage_add_node_header(r) != NGX_OK) {
        return NGX_ERROR;
    }
    return ctx->committed ? ngx_http_selvage_add_copies_header(r) : NGX_OK;
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
        return ngx_http_send_header(r);
    }

    r->headers_out.content_length_n = body->len;
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    if (ngx_strcmp(type, "text/plain") == 0) {
        ngx_str_set(&r->headers_out.charset, "utf-8");
    }
    rc = ngx_http_send_header(r);
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
    return ngx_http_output_filter(r, &out);
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


static ngx_uint_t
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


/* Answers with what a call of the library ended with, right after that call. `elsewhere` may be NULL unless
 * that is the status. */
ngx_int_t
ngx_http_selvage_answer_status(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_uint_t code = ngx_http_selvage_http_status(status);
    const char *line;
    char why[1024];

    if (status == SELVAGE_STATUS_ELSEWHERE) {
        if (ngx_http_selvage_add_header(r, "Selvage-Elsewhere", elsewhere->text, ngx_strlen(elsewhere->text))
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }
    if (code == NGX_HTTP_SERVICE_UNAVAILABLE || code == NGX_HTTP_INSUFFICIENT_STORAGE) {
        if (ngx_http_selvage_add_header(r, "Retry-After", "1", 1) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    if (status < SELVAGE_STATUS_NULL) {
        line = selvage_status_text(status);
    } else if (smcf->node == NULL) {
        line = "this worker process could not attach to its node yet";
    } else {
        (void) selvage_last_error(why, sizeof(why));
        line = why;
    }
    if (code == NGX_HTTP_INTERNAL_SERVER_ERROR) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "selvage: %s: %s", selvage_status_text(status),
                      line);
    }
    return ngx_http_selvage_answer_line(r, code, line);
}
