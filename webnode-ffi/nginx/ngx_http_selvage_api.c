/*
 * The content handler of session data.
 *
 *   GET    <location>               the whole session as JSON
 *   DELETE <location>               destroys the session
 *   GET    <location>/<name>        one attribute's value
 *   PUT    <location>/<name>        sets it: text if the body is UTF-8, bytes otherwise
 *   DELETE <location>/<name>        removes it
 *   POST   <location>/<name>/incr   adds 1 to a whole number and answers the new one
 *   POST   <location>/regenerate    gives the session a new id and keeps its data
 *
 * A request's course, in the order of the functions: parse, (for PUT: put.c), open, act, commit, end.
 * Every course ends in exactly one ngx_http_selvage_api_end or _fail; `r->main->count` is raised once for it.
 */
#include "ngx_http_selvage.h"

static void ngx_http_selvage_api_opened(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_api_created(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_api_act(ngx_http_request_t *r);
static void ngx_http_selvage_api_destroyed(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_api_renewed(ngx_http_request_t *r, const selvage_completion *done);
static void ngx_http_selvage_api_committed(ngx_http_request_t *r, const selvage_completion *done);


/* Closes the session (invariant 3), answers and ends the course. */
static void
ngx_http_selvage_api_end(ngx_http_request_t *r, ngx_uint_t status, const char *type, ngx_str_t *body)
{
    ngx_http_selvage_close_session(r, ngx_http_selvage_ctx(r));
    ngx_http_finalize_request(r, ngx_http_selvage_answer(r, status, type, body));
}


void
ngx_http_selvage_api_end_line(ngx_http_request_t *r, ngx_uint_t status, const char *line)
{
    ngx_http_selvage_close_session(r, ngx_http_selvage_ctx(r));
    ngx_http_finalize_request(r, ngx_http_selvage_answer_line(r, status, line));
}


void
ngx_http_selvage_api_fail(ngx_http_request_t *r, selvage_status status, const selvage_tag *elsewhere)
{
    ngx_http_selvage_drop_session(ngx_http_selvage_ctx(r));
    ngx_http_finalize_request(r, ngx_http_selvage_answer_status(r, status, elsewhere));
}


/* What the rest of the URI behind the location names. */
static ngx_int_t
ngx_http_selvage_api_parse(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_http_core_loc_conf_t *clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
    u_char *rest = r->uri.data + clcf->name.len;
    u_char *end = r->uri.data + r->uri.len;
    u_char *slash;

    if (r->uri.len < clcf->name.len) {
        return NGX_DECLINED;
    }
    if (rest < end && clcf->name.len > 0 && clcf->name.data[clcf->name.len - 1] != '/') {
        if (*rest != '/') {
            return NGX_DECLINED;
        }
        rest++;
    }
    ctx->target = NGX_HTTP_SELVAGE_SESSION;
    ctx->name.data = rest;
    ctx->name.len = end - rest;
    if (rest == end) {
        return NGX_OK;
    }

    ctx->target = NGX_HTTP_SELVAGE_ATTRIBUTE;
    slash = ngx_strlchr(rest, end, '/');
    if (slash != NULL) {
        if (end - slash != sizeof("/incr") - 1 || ngx_strncmp(slash, "/incr", sizeof("/incr") - 1) != 0) {
            return NGX_DECLINED;
        }
        ctx->target = NGX_HTTP_SELVAGE_INCR;
        ctx->name.len = slash - rest;
    } else if (r->method == NGX_HTTP_POST && ctx->name.len == sizeof("regenerate") - 1
               && ngx_strncmp(rest, "regenerate", sizeof("regenerate") - 1) == 0)
    {
        ctx->target = NGX_HTTP_SELVAGE_REGENERATE;
    }
    return NGX_OK;
}


/* The methods that a target takes, for the Allow header; NULL if it takes the request's. */
static const char *
ngx_http_selvage_api_refused(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_uint_t taken;
    const char *allow;

    switch (ctx->target) {
    case NGX_HTTP_SELVAGE_SESSION:
        taken = NGX_HTTP_GET|NGX_HTTP_HEAD|NGX_HTTP_DELETE;
        allow = "GET, HEAD, DELETE";
        break;
    case NGX_HTTP_SELVAGE_ATTRIBUTE:
        taken = NGX_HTTP_GET|NGX_HTTP_HEAD|NGX_HTTP_PUT|NGX_HTTP_DELETE;
        allow = "GET, HEAD, PUT, DELETE";
        break;
    default:
        taken = NGX_HTTP_POST;
        allow = "POST";
    }
    return (r->method & taken) ? NULL : allow;
}


/* Answers before the course begins. */
static ngx_int_t
ngx_http_selvage_api_refuse(ngx_http_request_t *r, ngx_uint_t status, const char *line)
{
    ngx_int_t rc = ngx_http_discard_request_body(r);

    return rc == NGX_OK ? ngx_http_selvage_answer_line(r, status, line) : rc;
}


ngx_int_t
ngx_http_selvage_api_handler(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    const char *allow;
    char line[128];
    ngx_int_t rc;

    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    if (r != r->main) {
        /* A subrequest has no response headers of its own, and so no cookie. */
        return NGX_HTTP_FORBIDDEN;
    }
    if (ngx_http_selvage_api_parse(r, ctx) != NGX_OK) {
        return ngx_http_selvage_api_refuse(r, NGX_HTTP_NOT_FOUND, "no such resource of the session API");
    }
    allow = ngx_http_selvage_api_refused(r, ctx);
    if (allow != NULL) {
        if (ngx_http_selvage_add_header(r, "Allow", allow, ngx_strlen(allow)) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
        return ngx_http_selvage_api_refuse(r, NGX_HTTP_NOT_ALLOWED, "not a method of this resource");
    }
    if (ctx->main->node == NULL) {
        rc = ngx_http_discard_request_body(r);
        return rc == NGX_OK ? ngx_http_selvage_answer_status(r, SELVAGE_STATUS_NOT_READY, NULL) : rc;
    }
    if (r->method == NGX_HTTP_PUT
        && ngx_http_selvage_put_too_large(r, r->headers_in.content_length_n, line, sizeof(line)))
    {
        return ngx_http_selvage_api_refuse(r, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE, line);
    }

    ngx_http_selvage_read_cookie(r, ctx);
    if (r->method != NGX_HTTP_PUT) {
        rc = ngx_http_discard_request_body(r);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    /* A redirect may have come from a location that has the lock: the course opens the session for itself. */
    ngx_http_selvage_close_session(r, ctx);
    /* From here on the course answers, now or later. */
    r->main->count++;
    if (r->method == NGX_HTTP_PUT) {
        ngx_http_selvage_put(r);
    } else {
        ngx_http_selvage_api_open(r);
    }
    return NGX_DONE;
}


/* No session, or none any more. */
void
ngx_http_selvage_api_missing(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (ctx->has_cookie && ngx_http_selvage_clear_cookie(r, ctx) != NGX_OK) {
        ngx_http_selvage_api_end_line(r, NGX_HTTP_INTERNAL_SERVER_ERROR, "no memory");
        return;
    }
    ngx_http_selvage_api_end_line(r, NGX_HTTP_NOT_FOUND, "no such session");
}


ngx_uint_t
ngx_http_selvage_api_creates(ngx_http_request_t *r)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_http_get_module_loc_conf(r, ngx_http_selvage_module);

    /* Nothing is made only to be deleted. */
    return slcf->session == NGX_HTTP_SELVAGE_CREATE && r->method != NGX_HTTP_DELETE;
}


void
ngx_http_selvage_api_open(ngx_http_request_t *r)
{
    ngx_uint_t reads = r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD);

    if (ngx_http_selvage_ctx(r)->has_cookie) {
        ngx_http_selvage_start(r, reads ? NGX_HTTP_SELVAGE_OPEN_READ_ONLY : NGX_HTTP_SELVAGE_OPEN_EXCLUSIVE,
                               ngx_http_selvage_api_opened);
    } else if (ngx_http_selvage_api_creates(r)) {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_api_created);
    } else {
        ngx_http_selvage_api_missing(r);
    }
}


static void
ngx_http_selvage_api_opened(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    switch (done->status) {
    case SELVAGE_STATUS_OK:
        ctx->session = done->session;
        if (ngx_http_selvage_adopt(r, ctx) != NGX_OK) {
            ngx_http_selvage_api_fail(r, SELVAGE_STATUS_INTERNAL, NULL);
            return;
        }
        ngx_http_selvage_api_act(r);
        return;
    case SELVAGE_STATUS_MISSING:
    case SELVAGE_STATUS_GONE:
        if (ngx_http_selvage_api_creates(r)) {
            ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_CREATE_SESSION, ngx_http_selvage_api_created);
        } else {
            ngx_http_selvage_api_missing(r);
        }
        return;
    default:
        ngx_http_selvage_api_fail(r, done->status, &done->elsewhere);
    }
}


static void
ngx_http_selvage_api_created(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_api_fail(r, done->status, NULL);
        return;
    }
    ctx->session = done->session;
    ctx->created = 1;
    ngx_http_selvage_api_act(r);
}


/* Answers the whole session as JSON. */
static void
ngx_http_selvage_api_end_json(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status;
    const char *json;
    ngx_str_t body;

    status = selvage_session_json(ctx->session, &json, &body.len);
    if (status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_api_fail(r, status, NULL);
        return;
    }
    body.data = ngx_pnalloc(r->pool, body.len);
    if (body.data == NULL) {
        ngx_http_selvage_api_end_line(r, NGX_HTTP_INTERNAL_SERVER_ERROR, "no memory");
        return;
    }
    ngx_memcpy(body.data, json, body.len);
    ngx_http_selvage_api_end(r, NGX_HTTP_OK, "application/json", &body);
}


/* Answers one attribute as it is. */
static void
ngx_http_selvage_api_end_attribute(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status;
    const uint8_t *bytes;
    ngx_str_t body;
    uint32_t kind;

    status = selvage_session_render(ctx->session, (const char *) ctx->name.data, ctx->name.len, &bytes,
                                    &body.len, &kind);
    if (status == SELVAGE_STATUS_MISSING) {
        ngx_http_selvage_api_end_line(r, NGX_HTTP_NOT_FOUND, "no such attribute");
        return;
    }
    if (status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_api_fail(r, status, NULL);
        return;
    }
    body.data = ngx_pnalloc(r->pool, body.len ? body.len : 1);
    if (body.data == NULL) {
        ngx_http_selvage_api_end_line(r, NGX_HTTP_INTERNAL_SERVER_ERROR, "no memory");
        return;
    }
    ngx_memcpy(body.data, bytes, body.len);
    ngx_http_selvage_api_end(r, NGX_HTTP_OK,
                             kind == SELVAGE_TYPE_BYTES ? "application/octet-stream" : "text/plain", &body);
}


/* Changes one attribute, uncommitted. */
static selvage_status
ngx_http_selvage_api_change(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    const char *name = (const char *) ctx->name.data;
    selvage_status status;

    if (ctx->target == NGX_HTTP_SELVAGE_INCR) {
        return selvage_session_incr(ctx->session, name, ctx->name.len, 1, &ctx->number);
    }
    if (r->method == NGX_HTTP_DELETE) {
        return selvage_session_remove(ctx->session, name, ctx->name.len);
    }
    /* The library says what is UTF-8. A bad name is refused by the second call, too. */
    status = selvage_session_set_text(ctx->session, name, ctx->name.len, (const char *) ctx->body.data,
                                      ctx->body.len);
    if (status == SELVAGE_STATUS_INVALID) {
        status = selvage_session_set_bytes(ctx->session, name, ctx->name.len, ctx->body.data, ctx->body.len);
    }
    return status;
}


/* Does with the open session what the request asks for. */
static void
ngx_http_selvage_api_act(ngx_http_request_t *r)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_status status;

    if (r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD)) {
        if (ctx->created) {
            ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_COMMIT, ngx_http_selvage_api_committed);
        } else if (ctx->target == NGX_HTTP_SELVAGE_SESSION) {
            ngx_http_selvage_api_end_json(r);
        } else {
            ngx_http_selvage_api_end_attribute(r);
        }
        return;
    }
    if (ctx->target == NGX_HTTP_SELVAGE_SESSION) {
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_DESTROY, ngx_http_selvage_api_destroyed);
        return;
    }
    if (ctx->target == NGX_HTTP_SELVAGE_REGENERATE) {
        if (ctx->created) {
            /* Its id is new already. */
            ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_COMMIT, ngx_http_selvage_api_committed);
        } else {
            ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_RENEW, ngx_http_selvage_api_renewed);
        }
        return;
    }

    status = ngx_http_selvage_api_change(r, ctx);
    switch (status) {
    case SELVAGE_STATUS_OK:
        ngx_http_selvage_start(r, NGX_HTTP_SELVAGE_COMMIT, ngx_http_selvage_api_committed);
        return;
    case SELVAGE_STATUS_MISSING:
        ngx_http_selvage_api_end_line(r, NGX_HTTP_NOT_FOUND, "no such attribute");
        return;
    case SELVAGE_STATUS_WRONG_TYPE:
        ngx_http_selvage_api_end_line(r, NGX_HTTP_CONFLICT, "this attribute is not a whole number");
        return;
    default:
        ngx_http_selvage_api_fail(r, status, NULL);
    }
}


static void
ngx_http_selvage_api_committed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    ngx_str_t body;
    u_char number[NGX_INT64_LEN + 1];

    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_api_fail(r, done->status, NULL);
        return;
    }
    ctx->committed = 1;
    ctx->copies = done->commit.copies;
    if (ctx->created && ngx_http_selvage_set_cookie(r, ctx) != NGX_OK) {
        ngx_http_selvage_api_fail(r, SELVAGE_STATUS_INTERNAL, NULL);
        return;
    }

    switch (ctx->target) {
    case NGX_HTTP_SELVAGE_SESSION:
    case NGX_HTTP_SELVAGE_REGENERATE:
        ngx_http_selvage_api_end_json(r);
        return;
    case NGX_HTTP_SELVAGE_ATTRIBUTE:
        if (r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD)) {
            ngx_http_selvage_api_end_attribute(r);
        } else {
            ngx_http_selvage_api_end(r, NGX_HTTP_NO_CONTENT, NULL, NULL);
        }
        return;
    case NGX_HTTP_SELVAGE_INCR:
        body.len = ngx_sprintf(number, "%L\n", ctx->number) - number;
        body.data = ngx_pnalloc(r->pool, body.len);
        if (body.data == NULL) {
            ngx_http_selvage_api_end_line(r, NGX_HTTP_INTERNAL_SERVER_ERROR, "no memory");
            return;
        }
        ngx_memcpy(body.data, number, body.len);
        ngx_http_selvage_api_end(r, NGX_HTTP_OK, "text/plain", &body);
    }
}


static void
ngx_http_selvage_api_destroyed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);

    if (done->status != SELVAGE_STATUS_OK) {
        ngx_http_selvage_api_fail(r, done->status, NULL);
        return;
    }
    if (ngx_http_selvage_clear_cookie(r, ctx) != NGX_OK) {
        ngx_http_selvage_api_fail(r, SELVAGE_STATUS_INTERNAL, NULL);
        return;
    }
    ngx_http_selvage_api_end(r, NGX_HTTP_NO_CONTENT, NULL, NULL);
}


static void
ngx_http_selvage_api_renewed(ngx_http_request_t *r, const selvage_completion *done)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_ctx(r);
    selvage_session_info info;

    if (done->status != SELVAGE_STATUS_OK) {
        (void) ngx_http_selvage_give_cookie(r, ctx);
        ngx_http_selvage_api_fail(r, done->status, NULL);
        return;
    }
    if (ngx_http_selvage_set_cookie(r, ctx) != NGX_OK
        || selvage_session_describe(ctx->session, &info) != SELVAGE_STATUS_OK)
    {
        ngx_http_selvage_api_fail(r, SELVAGE_STATUS_INTERNAL, NULL);
        return;
    }
    ctx->committed = 1;
    ctx->copies = info.copies;
    ngx_http_selvage_api_end_json(r);
}
