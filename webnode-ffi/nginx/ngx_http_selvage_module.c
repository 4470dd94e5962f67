/*
 * The selvage module, and the life of a worker process.
 *
 * Each worker attaches for itself, after it has been forked and has dropped its privileges; master, cache
 * manager and cache loader never attach. A worker that cannot attach yet serves: requests that need a
 * session get 503 until it can.
 */
#include "ngx_http_selvage.h"

/* How often a worker that could not attach tries again, ms. */
#define NGX_HTTP_SELVAGE_ATTACH_INTERVAL 1000

static ngx_int_t ngx_http_selvage_postconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_selvage_init_module(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_selvage_init_process(ngx_cycle_t *cycle);
static void ngx_http_selvage_exit_process(ngx_cycle_t *cycle);

static ngx_http_module_t ngx_http_selvage_module_ctx = {
    ngx_http_selvage_add_variables,
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
    ngx_http_selvage_init_module,
    ngx_http_selvage_init_process,
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_selvage_exit_process,
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_selvage_add_handler(ngx_http_core_main_conf_t *cmcf, ngx_uint_t phase, ngx_http_handler_pt handler)
{
    ngx_http_handler_pt *slot = ngx_array_push(&cmcf->phases[phase].handlers);

    if (slot == NULL) {
        return NGX_ERROR;
    }
    *slot = handler;
    return NGX_OK;
}


/* nginx runs a phase's last handler first: the look comes before `if`, the turn before try_files. */
static ngx_int_t
ngx_http_selvage_postconfiguration(ngx_conf_t *cf)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_selvage_module);
    ngx_http_core_main_conf_t *cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    if (!smcf->set) {
        return NGX_OK;
    }
    if (ngx_http_selvage_add_handler(cmcf, NGX_HTTP_REWRITE_PHASE, ngx_http_selvage_look_handler) != NGX_OK
        || ngx_http_selvage_add_handler(cmcf, NGX_HTTP_PRECONTENT_PHASE, ngx_http_selvage_turn_handler)
           != NGX_OK)
    {
        return NGX_ERROR;
    }
    return ngx_http_selvage_filter_init(cf);
}


/* The configuration of a cycle, if it uses the module. */
static ngx_http_selvage_main_conf_t *
ngx_http_selvage_main_conf(ngx_cycle_t *cycle)
{
    ngx_http_selvage_main_conf_t *smcf;

    if (ngx_get_conf(cycle->conf_ctx, ngx_http_module) == NULL) {
        return NULL;
    }
    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_selvage_module);
    return smcf != NULL && smcf->set ? smcf : NULL;
}


static ngx_int_t
ngx_http_selvage_init_module(ngx_cycle_t *cycle)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_selvage_main_conf(cycle);

    if (smcf == NULL) {
        return NGX_OK;
    }
    if (ngx_http_selvage_find_attributes(cycle, smcf) != NGX_OK) {
        return NGX_ERROR;
    }
    ngx_http_selvage_count_load(smcf);
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
    ngx_http_selvage_main_conf_t *smcf = ngx_http_selvage_main_conf(cycle);

    if (smcf == NULL || (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)) {
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
    ngx_http_selvage_main_conf_t *smcf = ngx_http_selvage_main_conf(cycle);

    if (smcf == NULL || smcf->node == NULL) {
        return;
    }
    ngx_http_selvage_doorbell_close(smcf);
    (void) selvage_node_close(smcf->node);
    smcf->node = NULL;
}
