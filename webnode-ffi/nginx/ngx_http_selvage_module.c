/*
 * Directives and configuration of the selvage module, and the life of a worker process.
 *
 * Each worker attaches for itself, after it has been forked and has dropped its privileges; master, cache
 * manager and cache loader never attach. A worker that cannot attach yet serves: requests that need a
 * session get 503 until it can.
 */
#include "ngx_http_selvage.h"

/* How often a worker that could not attach tries again, ms. */
#define NGX_HTTP_SELVAGE_ATTACH_INTERVAL 1000

static char *ngx_http_selvage_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_selvage_api_directive(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static void *ngx_http_selvage_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_selvage_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_selvage_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
static ngx_int_t ngx_http_selvage_postconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_selvage_init_process(ngx_cycle_t *cycle);
static void ngx_http_selvage_exit_process(ngx_cycle_t *cycle);

static ngx_conf_enum_t ngx_http_selvage_session_values[] = {
    { ngx_string("off"), NGX_HTTP_SELVAGE_OFF },
    { ngx_string("on"), NGX_HTTP_SELVAGE_ON },
    { ngx_string("create"), NGX_HTTP_SELVAGE_CREATE },
    { ngx_null_string, 0 }
};

static ngx_command_t ngx_http_selvage_commands[] = {
    { ngx_string("selvage"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_selvage_directive,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("selvage_session"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_selvage_loc_conf_t, session),
      ngx_http_selvage_session_values },

    { ngx_string("selvage_api"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_selvage_api_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    ngx_null_command
};

static ngx_http_module_t ngx_http_selvage_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_selvage_postconfiguration,
    ngx_http_selvage_create_main_conf,
    NULL,                                  /* init main configuration */
    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */
    ngx_http_selvage_create_loc_conf,
    ngx_http_selvage_merge_loc_conf
};

ngx_module_t ngx_http_selvage_module = {
    NGX_MODULE_V1,
    &ngx_http_selvage_module_ctx,
    ngx_http_selvage_commands,
    NGX_HTTP_MODULE,
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_selvage_init_process,
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_selvage_exit_process,
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static const char *
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

    return NGX_CONF_OK;
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


static void *
ngx_http_selvage_create_main_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_selvage_main_conf_t));
}


static void *
ngx_http_selvage_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_selvage_loc_conf_t *slcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_selvage_loc_conf_t));

    if (slcf != NULL) {
        slcf->session = NGX_CONF_UNSET_UINT;
    }
    return slcf;
}


static char *
ngx_http_selvage_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_selvage_loc_conf_t *prev = parent;
    ngx_http_selvage_loc_conf_t *slcf = child;
    ngx_http_selvage_main_conf_t *smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_selvage_module);

    ngx_conf_merge_uint_value(slcf->session, prev->session, NGX_HTTP_SELVAGE_OFF);

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


static ngx_int_t
ngx_http_selvage_postconfiguration(ngx_conf_t *cf)
{
    ngx_http_core_main_conf_t *cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    ngx_http_handler_pt *handler = ngx_array_push(&cmcf->phases[NGX_HTTP_PREACCESS_PHASE].handlers);

    if (handler == NULL) {
        return NGX_ERROR;
    }
    *handler = ngx_http_selvage_phase_handler;
    return NGX_OK;
}


/* Attaches without waiting; tries again later if that failed. */
static void
ngx_http_selvage_attach(ngx_event_t *event)
{
    ngx_http_selvage_main_conf_t *smcf = event->data;
    selvage_status status;
    char why[512];

    status = selvage_node_attach(ngx_http_selvage_text(&smcf->path), ngx_http_selvage_text(&smcf->name), 0,
                                 &smcf->node);
    if (status == SELVAGE_STATUS_OK
        && selvage_node_describe(smcf->node, &smcf->info) == SELVAGE_STATUS_OK
        && ngx_http_selvage_doorbell_open(smcf, event->log) == NGX_OK)
    {
        return;
    }

    (void) selvage_last_error(why, sizeof(why));
    ngx_log_error(NGX_LOG_ERR, event->log, 0, "selvage: cannot attach: %s", why);
    (void) selvage_node_close(smcf->node);
    smcf->node = NULL;
    ngx_add_timer(event, NGX_HTTP_SELVAGE_ATTACH_INTERVAL);
}


static ngx_int_t
ngx_http_selvage_init_process(ngx_cycle_t *cycle)
{
    ngx_http_selvage_main_conf_t *smcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE) {
        return NGX_OK;
    }
    if (ngx_get_conf(cycle->conf_ctx, ngx_http_module) == NULL) {
        return NGX_OK;
    }
    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_selvage_module);
    if (smcf == NULL || !smcf->set) {
        return NGX_OK;
    }

    smcf->attach.handler = ngx_http_selvage_attach;
    smcf->attach.data = smcf;
    smcf->attach.log = cycle->log;
    smcf->attach.cancelable = 1;
    ngx_http_selvage_attach(&smcf->attach);
    return NGX_OK;
}


static void
ngx_http_selvage_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_selvage_main_conf_t *smcf;

    if (ngx_get_conf(cycle->conf_ctx, ngx_http_module) == NULL) {
        return;
    }
    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_selvage_module);
    if (smcf == NULL || smcf->node == NULL) {
        return;
    }
    ngx_http_selvage_doorbell_close(smcf);
    (void) selvage_node_close(smcf->node);
    smcf->node = NULL;
}
