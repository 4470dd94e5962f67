/*
 * What all workers of this nginx share, since it was started: counters, $selvage_total_<what>, and how often
 * the configuration was loaded.
 *
 * It lies in a zone of nginx's shared memory, and stays over reloads. A location that returns the counters is
 * what Prometheus reads; docs/nginx.md has one.
 */
#include "ngx_http_selvage.h"

#define NGX_HTTP_SELVAGE_TOTAL "selvage_total_"

static ngx_int_t ngx_http_selvage_total_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data);

/* In the zone. */
typedef struct {
    /* How often a configuration was loaded. */
    ngx_atomic_t loads;
    ngx_atomic_t counts[NGX_HTTP_SELVAGE_COUNTS];
} ngx_http_selvage_shared_t;

/* What is counted, in the order of ngx_http_selvage_count_e. */
static ngx_str_t ngx_http_selvage_counts[] = {
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "held"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "bad_request"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "conflict"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "too_large"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "elsewhere"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "failed"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "bad_instructions"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "unavailable"),
    ngx_string(NGX_HTTP_SELVAGE_TOTAL "full")
};


static ngx_int_t
ngx_http_selvage_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_slab_pool_t *pool = (ngx_slab_pool_t *) zone->shm.addr;

    if (data != NULL) {
        /* A reload: the same memory, and what is in it. */
        zone->data = data;
        return NGX_OK;
    }
    if (zone->shm.exists) {
        zone->data = pool->data;
        return NGX_OK;
    }
    pool->data = ngx_slab_calloc(pool, sizeof(ngx_http_selvage_shared_t));
    zone->data = pool->data;
    return zone->data == NULL ? NGX_ERROR : NGX_OK;
}


ngx_int_t
ngx_http_selvage_add_shared(ngx_conf_t *cf, ngx_http_selvage_main_conf_t *smcf)
{
    ngx_str_t name = ngx_string("selvage");

    smcf->shared = ngx_shared_memory_add(cf, &name, 8 * ngx_pagesize, &ngx_http_selvage_module);
    if (smcf->shared == NULL) {
        return NGX_ERROR;
    }
    smcf->shared->init = ngx_http_selvage_init_zone;
    return NGX_OK;
}


void
ngx_http_selvage_count(ngx_http_selvage_main_conf_t *smcf, ngx_http_selvage_count_e what)
{
    ngx_http_selvage_shared_t *shared = smcf->shared->data;

    (void) ngx_atomic_fetch_add(&shared->counts[what], 1);
}


/* A configuration was loaded: the workers of older ones are about to end. */
void
ngx_http_selvage_count_load(ngx_http_selvage_main_conf_t *smcf)
{
    ngx_http_selvage_shared_t *shared = smcf->shared->data;

    smcf->load = ngx_atomic_fetch_add(&shared->loads, 1) + 1;
}


/* Whether this worker ends, or will be told to in a moment because there is a newer configuration. */
ngx_uint_t
ngx_http_selvage_ends(ngx_http_selvage_main_conf_t *smcf)
{
    ngx_http_selvage_shared_t *shared = smcf->shared->data;

    return ngx_exiting || shared->loads != smcf->load;
}


/* Counts a failure by the status that answers it. */
void
ngx_http_selvage_count_failure(ngx_http_selvage_main_conf_t *smcf, ngx_uint_t code)
{
    switch (code) {
    case NGX_HTTP_BAD_REQUEST:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_BAD_REQUEST);
        return;
    case NGX_HTTP_CONFLICT:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_CONFLICT);
        return;
    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_TOO_LARGE);
        return;
    case NGX_HTTP_MISDIRECTED_REQUEST:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_ELSEWHERE);
        return;
    case NGX_HTTP_BAD_GATEWAY:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_BAD_INSTRUCTIONS);
        return;
    case NGX_HTTP_SERVICE_UNAVAILABLE:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_UNAVAILABLE);
        return;
    case NGX_HTTP_INSUFFICIENT_STORAGE:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_FULL);
        return;
    default:
        ngx_http_selvage_count(smcf, NGX_HTTP_SELVAGE_COUNT_FAILED);
    }
}


static ngx_int_t
ngx_http_selvage_total_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_selvage_main_conf_t *smcf = ngx_http_get_module_main_conf(r, ngx_http_selvage_module);
    ngx_http_selvage_shared_t *shared;

    if (smcf->shared == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }
    shared = smcf->shared->data;
    v->data = ngx_pnalloc(r->pool, NGX_ATOMIC_T_LEN);
    if (v->data == NULL) {
        return NGX_ERROR;
    }
    v->len = ngx_sprintf(v->data, "%uA", shared->counts[data]) - v->data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
    return NGX_OK;
}


ngx_int_t
ngx_http_selvage_add_count_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t *v;
    ngx_uint_t i;

    for (i = 0; i < NGX_HTTP_SELVAGE_COUNTS; i++) {
        v = ngx_http_add_variable(cf, &ngx_http_selvage_counts[i], NGX_HTTP_VAR_NOCACHEABLE);
        if (v == NULL) {
            return NGX_ERROR;
        }
        v->get_handler = ngx_http_selvage_total_variable;
        v->data = i;
    }
    return NGX_OK;
}
