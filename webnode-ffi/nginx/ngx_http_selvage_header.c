/*
 * Changes by an upstream's response headers, and the encoding of values in headers.
 *
 *   Selvage-Set: name=value      sets an attribute: text if the value is UTF-8, bytes otherwise
 *   Selvage-Incr: name[=by]      adds to a whole number
 *   Selvage-Unset: name          removes an attribute
 *   Selvage-Owner: value         says whose session it is; empty: nobody's
 *   Selvage-Regenerate: 1        gives the session a new id
 *   Selvage-Destroy: 1           ends it
 *
 * Names and values are percent-encoded (RFC 3986): every byte that is not visible ASCII, "%", and in names
 * "=" stands as %XX. Plain spaces are taken, too. Each header may come several times.
 *
 * They are read from what the upstream has sent, not from the response that is being made: so they count
 * also when the upstream's response ends in an internal redirect (X-Accel-Redirect, error_page). A response
 * from a cache was another browser's: its instructions count for nobody.
 */
#include "ngx_http_selvage.h"

#define NGX_HTTP_SELVAGE_HEADERS "selvage-"

typedef ngx_int_t (*ngx_http_selvage_parse_pt)(ngx_http_request_t *r, ngx_http_selvage_change_t *change,
    ngx_str_t *value);

typedef struct {
    ngx_str_t name;
    ngx_http_selvage_change_e kind;
    ngx_http_selvage_parse_pt parse;
} ngx_http_selvage_instruction_t;

static ngx_int_t ngx_http_selvage_parse_pair(ngx_http_request_t *r, ngx_http_selvage_change_t *change,
    ngx_str_t *value);
static ngx_int_t ngx_http_selvage_parse_name(ngx_http_request_t *r, ngx_http_selvage_change_t *change,
    ngx_str_t *value);
static ngx_int_t ngx_http_selvage_parse_value(ngx_http_request_t *r, ngx_http_selvage_change_t *change,
    ngx_str_t *value);
static ngx_int_t ngx_http_selvage_parse_flag(ngx_http_request_t *r, ngx_http_selvage_change_t *change,
    ngx_str_t *value);

/* What follows "selvage-". */
static ngx_http_selvage_instruction_t ngx_http_selvage_instructions[] = {
    { ngx_string("set"), NGX_HTTP_SELVAGE_CHANGE_SET, ngx_http_selvage_parse_pair },
    { ngx_string("incr"), NGX_HTTP_SELVAGE_CHANGE_INCR, ngx_http_selvage_parse_pair },
    { ngx_string("unset"), NGX_HTTP_SELVAGE_CHANGE_UNSET, ngx_http_selvage_parse_name },
    { ngx_string("owner"), NGX_HTTP_SELVAGE_CHANGE_OWNER, ngx_http_selvage_parse_value },
    { ngx_string("regenerate"), NGX_HTTP_SELVAGE_CHANGE_REGENERATE, ngx_http_selvage_parse_flag },
    { ngx_string("destroy"), NGX_HTTP_SELVAGE_CHANGE_DESTROY, ngx_http_selvage_parse_flag },
    { ngx_null_string, 0, NULL }
};


static ngx_uint_t
ngx_http_selvage_plain(u_char c)
{
    return c > 0x20 && c < 0x7f && c != '%';
}


/* Bytes as they stand in a header. */
ngx_int_t
ngx_http_selvage_encode(ngx_pool_t *pool, const u_char *bytes, size_t len, ngx_str_t *text)
{
    static const u_char hex[] = "0123456789ABCDEF";
    size_t i, coded = 0;
    u_char *at;

    for (i = 0; i < len; i++) {
        coded += !ngx_http_selvage_plain(bytes[i]);
    }
    text->len = len + 2 * coded;
    text->data = ngx_pnalloc(pool, text->len ? text->len : 1);
    if (text->data == NULL) {
        return NGX_ERROR;
    }
    at = text->data;
    for (i = 0; i < len; i++) {
        if (ngx_http_selvage_plain(bytes[i])) {
            *at++ = bytes[i];
        } else {
            *at++ = '%';
            *at++ = hex[bytes[i] >> 4];
            *at++ = hex[bytes[i] & 0xf];
        }
    }
    return NGX_OK;
}


/* The bytes that a header's text stands for; NGX_DECLINED if that is malformed. */
static ngx_int_t
ngx_http_selvage_decode(ngx_pool_t *pool, const u_char *text, size_t len, ngx_str_t *bytes)
{
    const u_char *end = text + len;
    ngx_int_t byte;
    u_char *at;

    bytes->data = ngx_pnalloc(pool, len ? len : 1);
    if (bytes->data == NULL) {
        return NGX_ERROR;
    }
    for (at = bytes->data; text < end; text++) {
        if (*text != '%') {
            if (!ngx_http_selvage_plain(*text) && *text != ' ') {
                return NGX_DECLINED;
            }
            *at++ = *text;
            continue;
        }
        byte = end - text > 2 ? ngx_hextoi((u_char *) text + 1, 2) : NGX_ERROR;
        if (byte == NGX_ERROR) {
            return NGX_DECLINED;
        }
        *at++ = (u_char) byte;
        text += 2;
    }
    bytes->len = at - bytes->data;
    return NGX_OK;
}


static ngx_int_t
ngx_http_selvage_parse_name(ngx_http_request_t *r, ngx_http_selvage_change_t *change, ngx_str_t *value)
{
    ngx_int_t rc = ngx_http_selvage_decode(r->pool, value->data, value->len, &change->name);

    if (rc != NGX_OK) {
        return rc;
    }
    return change->name.len > 0 && change->name.len <= NGX_HTTP_SELVAGE_NAME_MAX ? NGX_OK : NGX_DECLINED;
}


static ngx_int_t
ngx_http_selvage_parse_value(ngx_http_request_t *r, ngx_http_selvage_change_t *change, ngx_str_t *value)
{
    return ngx_http_selvage_decode(r->pool, value->data, value->len, &change->value);
}


/* name=value; an increment may leave =by out. */
static ngx_int_t
ngx_http_selvage_parse_pair(ngx_http_request_t *r, ngx_http_selvage_change_t *change, ngx_str_t *value)
{
    u_char *end = value->data + value->len;
    u_char *equals = ngx_strlchr(value->data, end, '=');
    ngx_str_t part;
    ngx_int_t rc;

    change->by = 1;
    part.data = value->data;
    part.len = (equals != NULL ? equals : end) - value->data;
    rc = ngx_http_selvage_parse_name(r, change, &part);
    if (rc != NGX_OK) {
        return rc;
    }
    if (equals == NULL) {
        return change->kind == NGX_HTTP_SELVAGE_CHANGE_INCR ? NGX_OK : NGX_DECLINED;
    }
    part.data = equals + 1;
    part.len = end - part.data;
    if (change->kind == NGX_HTTP_SELVAGE_CHANGE_INCR) {
        return ngx_http_selvage_number(part.data, part.len, &change->by) == NGX_OK ? NGX_OK : NGX_DECLINED;
    }
    return ngx_http_selvage_parse_value(r, change, &part);
}


static ngx_int_t
ngx_http_selvage_parse_flag(ngx_http_request_t *r, ngx_http_selvage_change_t *change, ngx_str_t *value)
{
    return value->len == 1 && value->data[0] == '1' ? NGX_OK : NGX_DECLINED;
}


/* Whether a header is one of ours; what it is called behind "selvage-". */
static ngx_uint_t
ngx_http_selvage_is_ours(ngx_table_elt_t *header, ngx_str_t *rest)
{
    size_t skip = sizeof(NGX_HTTP_SELVAGE_HEADERS) - 1;

    if (header->hash == 0 || header->key.len <= skip
        || ngx_strncasecmp(header->key.data, (u_char *) NGX_HTTP_SELVAGE_HEADERS, skip) != 0)
    {
        return 0;
    }
    rest->data = header->key.data + skip;
    rest->len = header->key.len - skip;
    return 1;
}


/* Makes a change of a header, as the location allows that has asked the upstream. One that cannot be made is
 * remembered: then none is. */
static ngx_int_t
ngx_http_selvage_take(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx, ngx_table_elt_t *header,
    ngx_str_t *rest)
{
    ngx_http_selvage_instruction_t *instruction;
    ngx_http_selvage_change_t *change;
    ngx_int_t rc;

    for (instruction = ngx_http_selvage_instructions; instruction->parse != NULL; instruction++) {
        if (instruction->name.len == rest->len
            && ngx_strncasecmp(instruction->name.data, rest->data, rest->len) == 0)
        {
            break;
        }
    }
    if (instruction->parse == NULL) {
        /* Another web node's answer, say: not to be passed on, and not ours to follow. */
        return NGX_OK;
    }
    if (ctx->policy == NULL) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "selvage: \"%V\" is ignored: sessions are off here", &header->key);
        return NGX_OK;
    }
    if (ctx->head != NGX_HTTP_SELVAGE_HEAD_AHEAD) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "selvage: \"%V\" comes after the response's head and is ignored", &header->key);
        return NGX_OK;
    }
    if (ctx->policy->lock == NGX_HTTP_SELVAGE_LOCK_READ_ONLY) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "selvage: upstream sent \"%V: %V\" where sessions are read-only", &header->key,
                      &header->value);
        ctx->refusal = "the application changes a session that is read-only here";
        return NGX_OK;
    }
    change = ngx_http_selvage_push_change(r, ctx);
    if (change == NULL) {
        return NGX_ERROR;
    }
    change->kind = instruction->kind;
    rc = instruction->parse(r, change, &header->value);
    if (rc == NGX_DECLINED) {
        ctx->changes->nelts--;
        ctx->refusal = "the application's change of the session is malformed";
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "selvage: upstream sent an instruction that cannot be read: \"%V: %V\"", &header->key,
                      &header->value);
        return NGX_OK;
    }
    return rc;
}


static ngx_int_t
ngx_http_selvage_harvest_list(ngx_http_request_t *r, ngx_list_t *headers)
{
    ngx_list_part_t *part;
    ngx_table_elt_t *header;
    ngx_http_selvage_ctx_t *ctx;
    ngx_str_t rest;
    ngx_uint_t i;

    for (part = &headers->part; part != NULL; part = part->next) {
        header = part->elts;
        for (i = 0; i < part->nelts; i++) {
            if (!ngx_http_selvage_is_ours(&header[i], &rest)) {
                continue;
            }
            if (r->upstream != NULL) {
                /* What is said to one browser is not kept for others. */
                r->upstream->cacheable = 0;
            }
            if (r->background) {
                /* Said to nobody. */
                continue;
            }
            ctx = ngx_http_selvage_ctx(r);
            if (ctx == NULL || ngx_http_selvage_take(r, ctx, &header[i], &rest) != NGX_OK) {
                return NGX_ERROR;
            }
        }
    }
    return NGX_OK;
}


/* Whether there is a response that this upstream has sent for this request, read to the end of its head. */
static ngx_uint_t
ngx_http_selvage_responded(ngx_http_upstream_t *u)
{
    if (u == NULL || u->state == NULL || u->state->header_time == (ngx_msec_t) -1) {
        return 0;
    }
#if (NGX_HTTP_CACHE)
    switch (u->cache_status) {
    case NGX_HTTP_CACHE_STALE:
    case NGX_HTTP_CACHE_UPDATING:
    case NGX_HTTP_CACHE_REVALIDATED:
    case NGX_HTTP_CACHE_HIT:
        return 0;
    }
#endif
    return 1;
}


/* Takes the instructions of the request's upstream, once. */
ngx_int_t
ngx_http_selvage_harvest(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);

    if (!ngx_http_selvage_responded(r->upstream)
        || (r == r->main && ctx != NULL && ctx->harvested == r->upstream))
    {
        return NGX_OK;
    }
    if (ngx_http_selvage_harvest_list(r, &r->upstream->headers_in.headers) != NGX_OK) {
        return NGX_ERROR;
    }
    ctx = ngx_http_selvage_known_ctx(r);
    if (ctx != NULL && r == r->main) {
        ctx->harvested = r->upstream;
    }
    return NGX_OK;
}


/* Takes our headers out of the response. */
void
ngx_http_selvage_strip(ngx_http_request_t *r)
{
    ngx_list_part_t *part;
    ngx_table_elt_t *header;
    ngx_str_t rest;
    ngx_uint_t i;

    for (part = &r->headers_out.headers.part; part != NULL; part = part->next) {
        header = part->elts;
        for (i = 0; i < part->nelts; i++) {
            if (ngx_http_selvage_is_ours(&header[i], &rest)) {
                header[i].hash = 0;
            }
        }
    }
}
