/*
 * Directives and configuration.
 *
 * Directives that change the session make one list per level, in the order in which they stand. A level
 * without such a directive takes the list of the level above, as nginx's own lists do: the same array, so
 * that a request carries it out once, also when an internal redirect brings it to another location that
 * inherits it.
 */
#include "ngx_http_selvage.h"

/* What tells the changing directives apart. */
typedef struct {
    ngx_http_selvage_change_e kind;
    /* An attribute's name comes first. */
    unsigned named:1;
    /* Then a value, which may be left out. */
    unsigned valued:1;
    unsigned optional:1;
} ngx_http_selvage_form_t;

static char *ngx_http_selvage_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_selvage_api_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_selvage_rule_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_selvage_exclude_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

static ngx_conf_enum_t ngx_http_selvage_session_values[] = {
    { ngx_string("off"), NGX_HTTP_SELVAGE_OFF },
    { ngx_string("on"), NGX_HTTP_SELVAGE_ON },
    { ngx_string("on_change"), NGX_HTTP_SELVAGE_ON_CHANGE },
    { ngx_string("create"), NGX_HTTP_SELVAGE_CREATE },
    { ngx_null_string, 0 }
};

static ngx_conf_enum_t ngx_http_selvage_lock_values[] = {
    { ngx_string("off"), NGX_HTTP_SELVAGE_LOCK_OFF },
    { ngx_string("on"), NGX_HTTP_SELVAGE_LOCK_ON },
    { ngx_string("read_only"), NGX_HTTP_SELVAGE_LOCK_READ_ONLY },
    { ngx_null_string, 0 }
};

static ngx_http_selvage_form_t ngx_http_selvage_set = { NGX_HTTP_SELVAGE_CHANGE_SET, 1, 1, 0 };
static ngx_http_selvage_form_t ngx_http_selvage_incr = { NGX_HTTP_SELVAGE_CHANGE_INCR, 1, 1, 1 };
static ngx_http_selvage_form_t ngx_http_selvage_unset = { NGX_HTTP_SELVAGE_CHANGE_UNSET, 1, 0, 0 };
static ngx_http_selvage_form_t ngx_http_selvage_owner = { NGX_HTTP_SELVAGE_CHANGE_OWNER, 0, 1, 0 };
static ngx_http_selvage_form_t ngx_http_selvage_regenerate = { NGX_HTTP_SELVAGE_CHANGE_REGENERATE, 0, 0, 0 };
static ngx_http_selvage_form_t ngx_http_selvage_destroy = { NGX_HTTP_SELVAGE_CHANGE_DESTROY, 0, 0, 0 };

#define NGX_HTTP_SELVAGE_LEVELS \
    (NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_HTTP_LIF_CONF)

ngx_command_t ngx_http_selvage_commands[] = {
    { ngx_string("selvage"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_selvage_directive,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("selvage_session"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_selvage_loc_conf_t, session),
      ngx_http_selvage_session_values },

    { ngx_string("selvage_lock"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_selvage_loc_conf_t, lock),
      ngx_http_selvage_lock_values },

    { ngx_string("selvage_exclude"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE12,
      ngx_http_selvage_exclude_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("selvage_set"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE23,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_set },

    { ngx_string("selvage_incr"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE123,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_incr },

    { ngx_string("selvage_unset"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE12,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_unset },

    { ngx_string("selvage_owner"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_TAKE12,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_owner },

    { ngx_string("selvage_regenerate"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_regenerate },

    { ngx_string("selvage_destroy"),
      NGX_HTTP_SELVAGE_LEVELS|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_selvage_rule_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_selvage_destroy },

    { ngx_string("selvage_api"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_selvage_api_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    ngx_null_command
};


const char *
ngx_http_selvage_text(ngx_str_t *text)
{
    /* The configuration parser ends every argument with a NUL. */
    return text->len ? (const char *) text->data : NULL;
}


/* Reads and checks the file at once, so that `nginx -t` says file, line and key. */
static char *
ngx_http_selvage_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_selvage_main_conf_t *smcf = conf;
    ngx_str_t *value = cf->args->elts;
    char why[512];

    if (smcf->set) {
        return "is duplicate";
    }

    smcf->set = 1;
    smcf->path = value[1];
    if (ngx_conf_full_name(cf->cycle, &smcf->path, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }
    if (cf->args->nelts > 2) {
        smcf->name = value[2];
    }

    if (selvage_config_check(ngx_http_selvage_text(&smcf->path), ngx_http_selvage_text(&smcf->name))
        != SELVAGE_STATUS_OK)
    {
        (void) selvage_last_error(why, sizeof(why));
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "selvage: %s", why);
        return NGX_CONF_ERROR;
    }

    return ngx_http_selvage_add_shared(cf, smcf) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_http_selvage_api_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_selvage_loc_conf_t *slcf = conf;
    ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (slcf->api) {
        return "is duplicate";
    }

#if (NGX_PCRE)
    if (clcf->regex) {
        return "needs a location with a plain prefix: what follows the prefix names the attribute";
    }
#endif
    if (clcf->named || clcf->noname) {
        return "needs a location with a plain prefix: what follows the prefix names the attribute";
    }

    slcf->api = 1;
    clcf->handler = ngx_http_selvage_api_handler;
    return NGX_CONF_OK;
}


/* Compiles an nginx expression. */
static ngx_http_complex_value_t *
ngx_http_selvage_compile(ngx_conf_t *cf, ngx_str_t *text)
{
    ngx_http_compile_complex_value_t compile;
    ngx_http_complex_value_t *value = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));

    if (value == NULL) {
        return NULL;
    }
    ngx_memzero(&compile, sizeof(compile));
    compile.cf = cf;
    compile.value = text;
    compile.complex_value = value;
    return ngx_http_compile_complex_value(&compile) == NGX_OK ? value : NULL;
}


/* Takes a last argument `if=condition` off the arguments. */
static char *
ngx_http_selvage_condition(ngx_conf_t *cf, ngx_uint_t *nelts, ngx_http_complex_value_t **condition)
{
    ngx_str_t *last = (ngx_str_t *) cf->args->elts + *nelts - 1;
    ngx_str_t text;

    if (*nelts < 2 || last->len < 3 || ngx_strncmp(last->data, "if=", 3) != 0) {
        return NGX_CONF_OK;
    }
    text.data = last->data + 3;
    text.len = last->len - 3;
    if (text.len == 0) {
        return "has an empty condition";
    }
    *condition = ngx_http_selvage_compile(cf, &text);
    (*nelts)--;
    return *condition == NULL ? NGX_CONF_ERROR : NGX_CONF_OK;
}


/* A new rule of this level. */
static ngx_http_selvage_rule_t *
ngx_http_selvage_push_rule(ngx_conf_t *cf, ngx_http_selvage_loc_conf_t *slcf)
{
    ngx_http_selvage_rule_t *rule;

    if (slcf->rules == NGX_CONF_UNSET_PTR) {
        slcf->rules = ngx_array_create(cf->pool, 4, sizeof(ngx_http_selvage_rule_t));
        if (slcf->rules == NULL) {
            return NULL;
        }
        slcf->rules_file = cf->conf_file->file.name;
        slcf->rules_line = cf->conf_file->line;
    }
    rule = ngx_array_push(slcf->rules);
    if (rule != NULL) {
        ngx_memzero(rule, sizeof(ngx_http_selvage_rule_t));
    }
    return rule;
}


static char *
ngx_http_selvage_rule_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_selvage_form_t *form = cmd->post;
    ngx_http_selvage_rule_t *rule = ngx_http_selvage_push_rule(cf, conf);
    ngx_str_t *value = cf->args->elts;
    ngx_uint_t nelts = cf->args->nelts;
    ngx_uint_t at = 1;
    int64_t by;
    char *rv;

    if (rule == NULL) {
        return NGX_CONF_ERROR;
    }
    rule->kind = form->kind;
    rv = ngx_http_selvage_condition(cf, &nelts, &rule->condition);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (form->named) {
        if (at == nelts || value[at].len == 0) {
            return "needs an attribute's name";
        }
        if (value[at].len > NGX_HTTP_SELVAGE_NAME_MAX) {
            return "has an attribute's name of more than 128 bytes";
        }
        if (ngx_strlchr(value[at].data, value[at].data + value[at].len, '$') != NULL) {
            return "has a \"$\" in an attribute's name: only values are expressions";
        }
        rule->name = value[at++];
    }
    if (form->valued && at < nelts) {
        rule->value = ngx_http_selvage_compile(cf, &value[at++]);
        if (rule->value == NULL) {
            return NGX_CONF_ERROR;
        }
        if (form->kind == NGX_HTTP_SELVAGE_CHANGE_INCR && rule->value->lengths == NULL
            && ngx_http_selvage_number(rule->value->value.data, rule->value->value.len, &by) != NGX_OK)
        {
            return "adds something that is not a whole number";
        }
    } else if (form->valued && !form->optional) {
        return "needs a value";
    }
    return at == nelts ? NGX_CONF_OK : "has an argument too many; a condition is written if=...";
}


/* selvage_exclude /prefix | = /uri | ~ pattern | ~* pattern | $value */
static char *
ngx_http_selvage_exclude_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_selvage_loc_conf_t *slcf = conf;
    ngx_http_selvage_exclude_t *exclude;
    ngx_str_t *value = cf->args->elts;
    ngx_str_t *last = &value[cf->args->nelts - 1];
#if (NGX_PCRE)
    ngx_regex_compile_t compile;
    u_char why[NGX_MAX_CONF_ERRSTR];
#endif

    if (slcf->excludes == NGX_CONF_UNSET_PTR) {
        slcf->excludes = ngx_array_create(cf->pool, 2, sizeof(ngx_http_selvage_exclude_t));
        if (slcf->excludes == NULL) {
            return NGX_CONF_ERROR;
        }
    }
    exclude = ngx_array_push(slcf->excludes);
    if (exclude == NULL) {
        return NGX_CONF_ERROR;
    }
    ngx_memzero(exclude, sizeof(ngx_http_selvage_exclude_t));

    if (cf->args->nelts == 2 && last->len > 0 && last->data[0] == '$') {
        exclude->value = ngx_http_selvage_compile(cf, last);
        return exclude->value == NULL ? NGX_CONF_ERROR : NGX_CONF_OK;
    }
    if (cf->args->nelts == 2 || (value[1].len == 1 && value[1].data[0] == '=')) {
        if (last->len == 0 || last->data[0] != '/') {
            return "needs a URI that begins with \"/\", a pattern behind \"~\" or \"~*\", or a variable";
        }
        exclude->uri = *last;
        exclude->whole = cf->args->nelts == 3;
        return NGX_CONF_OK;
    }
    if (value[1].len == 0 || value[1].len > 2 || value[1].data[0] != '~'
        || (value[1].len == 2 && value[1].data[1] != '*'))
    {
        return "knows only \"=\", \"~\" and \"~*\" before a URI or a pattern";
    }
#if (NGX_PCRE)
    ngx_memzero(&compile, sizeof(compile));
    compile.pattern = *last;
    compile.pool = cf->pool;
    compile.options = value[1].len == 2 ? NGX_REGEX_CASELESS : 0;
    compile.err.data = why;
    compile.err.len = sizeof(why);
    if (ngx_regex_compile(&compile) != NGX_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "%V", &compile.err);
        return NGX_CONF_ERROR;
    }
    exclude->regex = compile.regex;
    return NGX_CONF_OK;
#else
    return "cannot use patterns: this nginx has no regular expressions";
#endif
}


void *
ngx_http_selvage_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_selvage_main_conf_t));

    if (smcf == NULL || ngx_array_init(&smcf->attributes, cf->pool, 4, sizeof(ngx_str_t)) != NGX_OK) {
        return NULL;
    }
    return smcf;
}


void *
ngx_http_selvage_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_selvage_loc_conf_t));

    if (slcf != NULL) {
        slcf->session = NGX_CONF_UNSET_UINT;
        slcf->lock = NGX_CONF_UNSET_UINT;
        slcf->rules = NGX_CONF_UNSET_PTR;
        slcf->excludes = NGX_CONF_UNSET_PTR;
    }
    return slcf;
}


char *
ngx_http_selvage_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_selvage_loc_conf_t *prev = parent;
    ngx_http_selvage_loc_conf_t *slcf = child;
    ngx_http_selvage_main_conf_t *smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_selvage_module);

    ngx_conf_merge_uint_value(slcf->session, prev->session, NGX_HTTP_SELVAGE_OFF);
    ngx_conf_merge_uint_value(slcf->lock, prev->lock, NGX_HTTP_SELVAGE_LOCK_OFF);
    ngx_conf_merge_ptr_value(slcf->excludes, prev->excludes, NULL);

    if (slcf->lock != NGX_HTTP_SELVAGE_LOCK_READ_ONLY) {
        ngx_conf_merge_ptr_value(slcf->rules, prev->rules, NULL);
    } else if (slcf->rules == NGX_CONF_UNSET_PTR) {
        /* What only reads inherits no changes. */
        slcf->rules = NULL;
    } else if (slcf->rules != NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "a session cannot be changed where \"selvage_lock\" is \"read_only\" in %V:%ui",
                      &slcf->rules_file, slcf->rules_line);
        return NGX_CONF_ERROR;
    }

    if (slcf->api && slcf->session == NGX_HTTP_SELVAGE_OFF) {
        /* Without a session the API would have nothing to show. */
        slcf->session = NGX_HTTP_SELVAGE_ON;
    }
    if (slcf->session != NGX_HTTP_SELVAGE_OFF && !smcf->set) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "sessions are used, but the http block has no \"selvage <configuration file>\"");
        return NGX_CONF_ERROR;
    }
    return NGX_CONF_OK;
}
