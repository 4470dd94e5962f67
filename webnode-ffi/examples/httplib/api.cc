// Session data over HTTP. A request's course, in the order of the functions: parse, read the body, open, act,
// commit, answer. A session is open only while its request is computed: never while a body is read.
#include "api.hpp"

#include "server.hpp"

#include <cstdio>
#include <optional>
#include <tuple>
#include <utility>

namespace example {

namespace {

using httplib::Request;
using httplib::Response;
using selvage::code;

// A body of this size has arrived with its head, or does so at once.
constexpr std::uint64_t small_body = 16384;
// Of a body that is refused so much is read, so that the connection can go on.
constexpr std::uint64_t drained_body = 16 << 20;

enum class target { session, attribute, incr, regenerate };

// One request under way: what it asks for, and what has become of it.
struct course {
    const selvage::node &node;
    const selvage::node_info &info;
    const Request &request;
    Response &response;
    const httplib::ContentReader *body;
    target what = target::session;
    std::string name;
    std::string value;
    std::optional<selvage::cookie> cookie;
    selvage::session session;
    bool created = false;
    std::optional<std::uint32_t> copies;

    bool reads() const { return request.method == "GET" || request.method == "HEAD"; }
    // Nothing is made only to be deleted.
    bool creates() const { return request.method != "DELETE"; }
};

int http_status(code number)
{
    switch (number) {
    case code::missing:
    case code::gone:
        return 404;
    case code::wrong_type:
        return 409;
    case code::elsewhere:
        return 421;
    case code::invalid:
        return 400;
    case code::too_large:
        return 413;
    case code::full:
        return 507;
    case code::read_only:
    case code::busy:
    case code::timeout:
    case code::ownership_lost:
    case code::lock_lost:
    case code::not_ready:
    case code::not_yet:
    case code::unreachable:
        return 503;
    default:
        return 500;
    }
}

void answer(course &it, int status, std::string_view body = {}, const char *type = nullptr)
{
    it.session.close();
    it.response.status = status;
    it.response.set_header("Cache-Control", "no-store");
    it.response.set_header("X-Content-Type-Options", "nosniff");
    it.response.set_header("Selvage-Node", std::string(selvage::view(it.info.name)));
    if (it.copies) {
        it.response.set_header("Selvage-Copies", std::to_string(*it.copies));
    }
    if (type != nullptr) {
        it.response.set_content(body.data(), body.size(), type);
    }
}

void answer_text(course &it, int status, const std::string &text)
{
    answer(it, status, text, "text/plain; charset=utf-8");
}

void answer_line(course &it, int status, std::string_view line)
{
    answer_text(it, status, std::string(line) + "\n");
}

void fail(course &it, const selvage::status &why, std::string_view elsewhere = {})
{
    const int status = http_status(why.number());
    if (why.is(code::elsewhere)) {
        it.response.set_header("Selvage-Elsewhere", std::string(elsewhere));
    }
    if (status == 503 || status == 507) {
        it.response.set_header("Retry-After", "1");
    }
    if (status == 500) {
        const std::string_view text = why.text();
        std::fprintf(stderr, "session: %.*s\n", static_cast<int>(text.size()), text.data());
    }
    // Who wants to change a session opens it so; only an id that was given up opens read-only then.
    answer_line(it, status, why.is(code::read_only)
                                ? "the session has been given a new id, by which it can be changed"
                                : why.text());
}

// Gives the browser the cookie of the open session.
bool gives_cookie(course &it)
{
    auto value = it.session.set_cookie();
    if (!value) {
        fail(it, value.error());
        return false;
    }
    // The one that it has been given before, if any, is not true any more.
    it.response.headers.erase("Set-Cookie");
    it.response.headers.emplace("Set-Cookie", *value);
    return true;
}

bool clears_cookie(course &it)
{
    auto value = it.node.clear_cookie();
    if (!value) {
        fail(it, value.error());
        return false;
    }
    it.response.headers.emplace("Set-Cookie", *value);
    return true;
}

void answer_missing(course &it)
{
    if (!it.cookie || clears_cookie(it)) {
        answer_line(it, 404, "no such session");
    }
}

// What the rest of the path behind the location names; nullopt if nothing.
std::optional<std::pair<target, std::string>> parse(const Request &request, std::string_view rest)
{
    if (!rest.empty()) {
        if (rest.front() != '/') {
            return std::nullopt;
        }
        rest.remove_prefix(1);
    }
    if (rest.empty()) {
        return std::pair(target::session, std::string());
    }
    const size_t slash = rest.find('/');
    if (slash != std::string_view::npos) {
        if (rest.substr(slash) != "/incr") {
            return std::nullopt;
        }
        return std::pair(target::incr, std::string(rest.substr(0, slash)));
    }
    const bool renews = request.method == "POST" && rest == "regenerate";
    return std::pair(renews ? target::regenerate : target::attribute, std::string(rest));
}

const char *methods_of(target what)
{
    switch (what) {
    case target::session:
        return "GET, HEAD, DELETE";
    case target::attribute:
        return "GET, HEAD, PUT, DELETE";
    default:
        return "POST";
    }
}

bool has(std::string_view methods, std::string_view method)
{
    while (!methods.empty()) {
        const size_t end = std::min(methods.find(", "), methods.size());
        if (methods.substr(0, end) == method) {
            return true;
        }
        methods.remove_prefix(std::min(end + 2, methods.size()));
    }
    return false;
}

// Reads the body to its end, and as much of it as fits; its whole size. nullopt if it does not come, or is so
// large that the connection ends instead.
std::optional<std::uint64_t> read_body(course &it, std::uint64_t most)
{
    if (it.body == nullptr) {
        return 0;
    }
    std::uint64_t size = 0;
    const bool whole = (*it.body)([&](const char *data, size_t length) {
        size += length;
        if (size <= most) {
            it.value.append(data, length);
        }
        return size <= most + drained_body;
    });
    if (!whole) {
        return std::nullopt;
    }
    it.response.headers.erase("Connection");
    return size;
}

bool refuses_large(course &it, std::uint64_t size)
{
    if (size <= it.info.archive_bytes_max) {
        return false;
    }
    answer_line(it, 413, "the body has " + std::to_string(size) + " bytes, a session at most "
                             + std::to_string(it.info.archive_bytes_max));
    return true;
}

// Finds the request's session cookie. A wrong or foreign one is no cookie.
void find_cookie(course &it)
{
    const auto headers = it.request.headers.equal_range("Cookie");
    for (auto header = headers.first; header != headers.second && !it.cookie; ++header) {
        const auto found = it.node.read_cookie(header->second);
        if (found) {
            it.cookie = *found;
        }
    }
}

// The body of a PUT. One that is still on its way is waited for only when the session is known to be here.
bool takes_body(course &it)
{
    const auto declared = it.request.get_header_value<std::uint64_t>("Content-Length");
    const bool counted = it.request.has_header("Content-Length");
    if (counted && refuses_large(it, declared)) {
        return false;
    }
    if (it.cookie && !(counted && declared <= small_body)) {
        const auto seen = it.node.open(*it.cookie, selvage::open_mode::read_only);
        if (!seen && !seen.is(code::missing) && !seen.is(code::gone)) {
            fail(it, seen.error(), seen.elsewhere());
            return false;
        }
    }
    const auto size = read_body(it, it.info.archive_bytes_max);
    if (!size) {
        answer_line(it, 400, "the body did not come whole");
        return false;
    }
    return !refuses_large(it, *size);
}

bool creates_session(course &it)
{
    auto made = it.node.create();
    if (!made) {
        fail(it, made.error());
        return false;
    }
    it.session = std::move(*made);
    it.created = true;
    return true;
}

bool opens(course &it)
{
    if (it.cookie) {
        auto found = it.node.open(*it.cookie, it.reads() ? selvage::open_mode::read_only
                                                         : selvage::open_mode::exclusive);
        if (found) {
            it.session = std::move(*found);
            const auto info = it.session.describe();
            return !info || !info->needs_cookie || gives_cookie(it);
        }
        if (!found.is(code::missing) && !found.is(code::gone)) {
            fail(it, found.error(), found.elsewhere());
            return false;
        }
    }
    if (it.creates()) {
        return creates_session(it);
    }
    answer_missing(it);
    return false;
}

bool commits(course &it)
{
    const auto reached = it.session.commit();
    if (!reached) {
        fail(it, reached.error());
        return false;
    }
    it.copies = reached->copies;
    return !it.created || gives_cookie(it);
}

void answer_json(course &it)
{
    const auto json = it.session.json();
    if (!json) {
        fail(it, json.error());
        return;
    }
    answer(it, 200, std::string(*json), "application/json");
}

void answer_attribute(course &it)
{
    const auto shown = it.session.render(it.name);
    if (shown.is(code::missing)) {
        answer_line(it, 404, "no such attribute");
    } else if (!shown) {
        fail(it, shown.error());
    } else {
        const bool bytes = shown->kind == SELVAGE_TYPE_BYTES;
        answer(it, 200, std::string(shown->body.chars()),
               bytes ? "application/octet-stream" : "text/plain; charset=utf-8");
    }
}

void look(course &it)
{
    if (it.created && !commits(it)) {
        return;
    }
    if (it.what == target::session) {
        answer_json(it);
    } else {
        answer_attribute(it);
    }
}

void destroy(course &it)
{
    const auto ended = it.session.destroy();
    if (!ended) {
        fail(it, ended);
    } else if (clears_cookie(it)) {
        answer(it, 204);
    }
}

void regenerate(course &it)
{
    if (it.created) {
        // Its id is new already.
        if (commits(it)) {
            answer_json(it);
        }
        return;
    }
    const auto renewed = it.session.regenerate();
    const auto info = it.session.describe();
    if (!renewed) {
        // It may have its new id all the same, and then the old one is gone.
        if (!info || !info->needs_cookie || gives_cookie(it)) {
            fail(it, renewed);
        }
        return;
    }
    if (info && gives_cookie(it)) {
        it.copies = info->copies;
        answer_json(it);
    }
}

// Changes one attribute, uncommitted.
selvage::status change(course &it, std::int64_t &number)
{
    if (it.what == target::incr) {
        auto counted = it.session.incr(it.name);
        number = *counted;
        return std::move(counted).error();
    }
    if (it.request.method == "DELETE") {
        return it.session.remove(it.name);
    }
    // The library says what is UTF-8. A bad name is refused by the second call, too.
    auto set = it.session.set(it.name, it.value);
    return set.is(code::invalid) ? it.session.set(it.name, selvage::bytes(it.value)) : set;
}

void act(course &it)
{
    std::int64_t number = 0;
    const auto changed = change(it, number);
    if (changed.is(code::missing)) {
        answer_line(it, 404, "no such attribute");
    } else if (changed.is(code::wrong_type)) {
        answer_line(it, 409, "this attribute is not a whole number");
    } else if (!changed) {
        fail(it, changed);
    } else if (commits(it)) {
        if (it.what == target::incr) {
            answer_text(it, 200, std::to_string(number) + "\n");
        } else {
            answer(it, 204);
        }
    }
}

}  // namespace

api::api(const selvage::node &node, const selvage::node_info &info, std::string path)
    : node_(node), info_(info), path_(std::move(path)) {}

bool api::is_for(const Request &request) const { return request.path.compare(0, path_.size(), path_) == 0; }

void api::answer(const Request &request, Response &response, const httplib::ContentReader *body) const
{
    course it{node_, info_, request, response, body, {}, {}, {}, {}, {}, {}, {}};
    const auto parsed = parse(request, std::string_view(request.path).substr(path_.size()));
    const char *methods = parsed ? methods_of(parsed->first) : "";
    if (!parsed || !has(methods, request.method)) {
        (void)read_body(it, 0);
        if (!parsed) {
            return answer_line(it, 404, "no such resource of the session API");
        }
        response.set_header("Allow", methods);
        return answer_line(it, 405, "not a method of this resource");
    }
    std::tie(it.what, it.name) = *parsed;
    find_cookie(it);
    if (request.method == "PUT") {
        if (!takes_body(it)) {
            return;
        }
    } else {
        (void)read_body(it, 0);
    }
    if (!opens(it)) {
        return;
    }
    if (it.reads()) {
        look(it);
    } else if (it.what == target::session) {
        destroy(it);
    } else if (it.what == target::regenerate) {
        regenerate(it);
    } else {
        act(it);
    }
}

bool api::gives_session(const Request &request, Response &response) const
{
    course it{node_, info_, request, response, nullptr, {}, {}, {}, {}, {}, {}, {}};
    find_cookie(it);
    if (it.cookie) {
        auto found = node_.open(*it.cookie, selvage::open_mode::read_only);
        if (found) {
            it.session = std::move(*found);
            const auto info = it.session.describe();
            return !info || !info->needs_cookie || gives_cookie(it);
        }
        if (!found.is(code::missing) && !found.is(code::gone)) {
            fail(it, found.error(), found.elsewhere());
            return false;
        }
    }
    if (!creates_session(it) || !commits(it)) {
        return false;
    }
    response.set_header("Selvage-Node", std::string(selvage::view(info_.name)));
    response.set_header("Selvage-Copies", std::to_string(*it.copies));
    return true;
}

}  // namespace example
