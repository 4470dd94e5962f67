/*
 * The body of a PUT to the session API: looked for when the session is known to be here, read before the
 * session is locked, and bounded by the largest session.
 */
#include "ngx_http_selvage.h"

static void ngx_http_selvage_put_peeked(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_put_read(ngx_http_request_t *r);
static void ngx_http_selvage_put_arrived(ngx_http_request_t *r);


/* Whether a body is over the limit; then the reason is in line. */
ngx_int_t
ngx_http_selvage_put_too_large(ngx_http_request_t *r, off_t size, char *line, size_t len)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);

    if (size <= (off_t) smcf->info.archive_bytes_max) {
        return 0;
    }
    ngx_snprintf((u_char *) line, len, "the body has %O bytes, a session at most %uL%Z", size,
                 smcf->info.archive_bytes_max);
    return 1;
}


/* A body that is still on its way is asked for only when the session is known to be here; with the session
 * locked nothing waits for a slow client. */
void
ngx_http_selvage_put(ngx_http_request_t *r)
{
    off_t arrived = r->header_in->last - r->header_in->pos;
    off_t length = r->headers_in.content_length_n;

    if (!ngx_http_selvage_ctx(r)->has_cookie || (length >= 0 && length <= arrived)) {
        ngx_http_selvage_put_read(r);
        return;
    }
    ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_OPEN_READ_ONLY, ngx_http_selvage_put_peeked);
}


static void
ngx_http_selvage_put_peeked(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_int_t rc;

    switch (done->status) {
    case SELVAGE_STATUS_OK:
        (void) selvage_session_close(done->session);
        ngx_http_selvage_put_read(r);
        return;
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        if (ngx_http_selvage_api_creates(r)) {
            ngx_http_selvage_put_read(r);
            return;
        }
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        ngx_http_finalize_request(r, rc);
    } else if (done->status == SELVAGE_STATUS_MISSING || done->status == SELVAGE_STATUS_GONE) {
        ngx_http_selvage_api_missing(r);
    } else {
        ngx_http_selvage_api_fail(r, done->status, &done->elsewhere);
    }
}


static void
ngx_http_selvage_put_read(ngx_http_request_t *r)
{
    ngx_int_t rc = ngx_http_read_client_request_body(r, ngx_http_selvage_put_arrived);

    /* Reading has raised the count for itself (and on failure lowered it again): give the course's up. */
    ngx_http_finalize_request(r, rc >= NGX_HTTP_SPECIAL_RESPONSE ? rc : NGX_DONE);
}


/* The body as one piece of memory; NGX_DECLINED if it is over the limit, with the reason in line. */
static ngx_int_t
ngx_http_selvage_put_gather(ngx_http_request_t *r, ngx_str_t *body, char *line, size_t line_len)
{
    ngx_chain_t *bufs = (r->request_body != NULL) ? r->request_body->bufs : NULL;
    ngx_chain_t *link;
    u_char *at;
    ssize_t n;
    off_t size = 0;

    for (link = bufs; link != NULL; link = link->next) {
        size += ngx_buf_size(link->buf);
    }
    if (ngx_http_selvage_put_too_large(r, size, line, line_len)) {
        return NGX_DECLINED;
    }
    body->data = ngx_pnalloc(r->pool, size > 0 ? (size_t) size : 1);
    if (body->data == NULL) {
        return NGX_ERROR;
    }
    at = body->data;
    for (link = bufs; link != NULL; link = link->next) {
        if (ngx_buf_in_memory(link->buf)) {
            at = ngx_cpymem(at, link->buf->pos, link->buf->last - link->buf->pos);
            continue;
        }
        if (link->buf->in_file) {
            n = ngx_read_file(link->buf->file, at, ngx_buf_size(link->buf), link->buf->file_pos);
            if (n != (ssize_t) ngx_buf_size(link->buf)) {
                return NGX_ERROR;
            }
            at += n;
        }
    }
    body->len = at - body->data;
    return NGX_OK;
}


static void
ngx_http_selvage_put_arrived(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    char line[128];

    switch (ngx_http_selvage_put_gather(r, &ctx->body, line, sizeof(line))) {
    case NGX_OK:
        ngx_http_selvage_api_open(r);
        return;
    case NGX_DECLINED:
        ngx_http_selvage_api_end_line(r, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE, line);
        return;
    default:
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
    }
}
