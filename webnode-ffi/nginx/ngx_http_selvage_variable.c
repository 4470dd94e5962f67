/*
 * Variables: $selvage_id, $selvage_node, $selvage_version, $selvage_copies, and $selvage_attr_<name>.
 *
 * They show what was copied when the session was last open in this request (invariant 4), so they are valid
 * at any time, also in the access log. nginx's variable names know no capitals and no dashes:
 * $selvage_attr_a_b is the attribute "a_b", or else the first one, in the order of names, that is a_b once
 * its capitals are made small and all but letters and digits are made underscores ("A-b", "a.b").
 *
 * The names that matter are collected from the configuration, so that a look at the session copies these
 * attributes and no others.
 */
#include "ngx_http_selvage.h"

#define NGX_HTTP_SELVAGE_PREFIX "selvage_attr_"

static ngx_int_t ngx_http_selvage_id_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_selvage_node_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_selvage_version_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_selvage_copies_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);
static ngx_int_t ngx_http_selvage_attribute_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);

static ngx_http_variable_t ngx_http_selvage_variables[] = {
    { ngx_string("selvage_id"), NULL, ngx_http_selvage_id_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },
    { ngx_string("selvage_node"), NULL, ngx_http_selvage_node_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },
    { ngx_string("selvage_version"), NULL, ngx_http_selvage_version_variable, 0, NGX_HTTP_VAR_NOCACHEABLE,
      0 },
    { ngx_string("selvage_copies"), NULL, ngx_http_selvage_copies_variable, 0, NGX_HTTP_VAR_NOCACHEABLE,
      0 },
    { ngx_string(NGX_HTTP_SELVAGE_PREFIX), NULL, ngx_http_selvage_attribute_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE|NGX_HTTP_VAR_PREFIX, 0 },
    ngx_http_null_variable
};


ngx_int_t
ngx_http_selvage_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t *v, *added;

    for (v = ngx_http_selvage_variables; v->name.len > 0; v++) {
        added = ngx_http_add_variable(cf, &v->name, v->flags);
        if (added == NULL) {
            return NGX_ERROR;
        }
        added->get_handler = v->get_handler;
        added->data = v->data;
    }
    return ngx_http_selvage_add_count_variables(cf);
}


static ngx_int_t
ngx_http_selvage_variable(ngx_http_variable_value_t *v, const u_char *data, size_t len)
{
    if (data == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }
    v->data = (u_char *) data;
    v->len = len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    return NGX_OK;
}


static ngx_int_t
ngx_http_selvage_id_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);

    return ngx_http_selvage_variable(v, ctx ? ctx->id.data : NULL, ctx ? ctx->id.len : 0);
}


static ngx_int_t
ngx_http_selvage_node_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    u_char *name = (u_char *) smcf->info.name;

    return ngx_http_selvage_variable(v, smcf->node ? name : NULL, ngx_strlen(name));
}


static ngx_int_t
ngx_http_selvage_version_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);

    return ngx_http_selvage_variable(v, ctx ? ctx->version.data : NULL, ctx ? ctx->version.len : 0);
}


static ngx_int_t
ngx_http_selvage_copies_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);
    u_char *text;

    if (ctx == NULL || ctx->id.data == NULL) {
        return ngx_http_selvage_variable(v, NULL, 0);
    }
    text = ngx_pnalloc(r->pool, NGX_INT32_LEN);
    if (text == NULL) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_variable(v, text, ngx_sprintf(text, "%uD", ctx->copies) - text);
}


/* What an attribute's name is called in variables, one byte of it. */
static u_char
ngx_http_selvage_fold(u_char c)
{
    c = ngx_tolower(c);
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ? c : '_';
}


static ngx_int_t
ngx_http_selvage_attribute_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_ctx_t *ctx = ngx_http_selvage_known_ctx(r);
    ngx_str_t *name = (ngx_str_t *) data;
    ngx_str_t *known = smcf->attributes.elts;
    size_t skip = sizeof(NGX_HTTP_SELVAGE_PREFIX) - 1;
    ngx_uint_t i;

    if (ctx == NULL || ctx->attributes == NULL) {
        return ngx_http_selvage_variable(v, NULL, 0);
    }
    for (i = 0; i < smcf->attributes.nelts; i++) {
        if (known[i].len == name->len - skip
            && ngx_strncasecmp(known[i].data, name->data + skip, known[i].len) == 0)
        {
            return ngx_http_selvage_variable(v, ctx->attributes[i].data, ctx->attributes[i].len);
        }
    }
    return ngx_http_selvage_variable(v, NULL, 0);
}


/* Collects the attributes that the configuration's variables name. */
ngx_int_t
ngx_http_selvage_find_attributes(ngx_cycle_t *cycle, ngx_http_selvage_main_conf_t *smcf)
{
    ngx_http_core_main_conf_t *cmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_core_module);
    ngx_http_variable_t *v = cmcf->variables.elts;
    size_t skip = sizeof(NGX_HTTP_SELVAGE_PREFIX) - 1;
    ngx_str_t *name;
    ngx_uint_t i;

    for (i = 0; i < cmcf->variables.nelts; i++) {
        if (v[i].get_handler != ngx_http_selvage_attribute_variable || v[i].name.len == skip) {
            continue;
        }
        name = ngx_array_push(&smcf->attributes);
        if (name == NULL) {
            return NGX_ERROR;
        }
        name->data = v[i].name.data + skip;
        name->len = v[i].name.len - skip;
    }
    return NGX_OK;
}


/* The attribute that a folded name means; NGX_DECLINED if there is none. */
static ngx_int_t
ngx_http_selvage_unfold(selvage_session *session, ngx_str_t *folded, ngx_str_t *name)
{
    selvage_value value;
    const char *found;
    size_t index, i;

    for (index = 0; /* void */ ; index++) {
        if (selvage_session_read_at(session, index, &found, &name->len, &value) != SELVAGE_STATUS_OK) {
            return NGX_DECLINED;
        }
        if (name->len != folded->len) {
            continue;
        }
        name->data = (u_char *) found;
        for (i = 0; i < folded->len && ngx_http_selvage_fold(name->data[i]) == folded->data[i]; i++) {
            /* void */
        }
        if (i == folded->len) {
            return NGX_OK;
        }
    }
}


/* Copies one attribute as it stands in headers; leaves *text empty if there is none. */
static ngx_int_t
ngx_http_selvage_learn_attribute(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx, ngx_str_t *folded,
    ngx_str_t *text)
{
    u_char copy[NGX_HTTP_SELVAGE_NAME_MAX];
    selvage_status status;
    const uint8_t *bytes;
    ngx_str_t name;
    size_t len;

    status = selvage_session_render(ctx->session, (const char *) folded->data, folded->len, &bytes, &len,
                                    NULL);
    if (status == SELVAGE_STATUS_MISSING) {
        if (ngx_http_selvage_unfold(ctx->session, folded, &name) != NGX_OK || name.len > sizeof(copy)) {
            return NGX_OK;
        }
        /* The name is lent only until the next call. */
        ngx_memcpy(copy, name.data, name.len);
        status = selvage_session_render(ctx->session, (const char *) copy, name.len, &bytes, &len, NULL);
    }
    if (status != SELVAGE_STATUS_OK) {
        return NGX_ERROR;
    }
    return ngx_http_selvage_encode(r->pool, bytes, len, text);
}


ngx_int_t
ngx_http_selvage_learn_attributes(ngx_http_request_t *r, ngx_http_selvage_ctx_t *ctx)
{
    ngx_array_t *names = &ctx->main->attributes;
    ngx_str_t *name = names->elts;
    ngx_uint_t i;

    ctx->attributes = NULL;
    if (names->nelts == 0) {
        return NGX_OK;
    }
    ctx->attributes = ngx_pcalloc(r->pool, names->nelts * sizeof(ngx_str_t));
    if (ctx->attributes == NULL) {
        return NGX_ERROR;
    }
    for (i = 0; i < names->nelts; i++) {
        if (ngx_http_selvage_learn_attribute(r, ctx, &name[i], &ctx->attributes[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }
    return NGX_OK;
}
