/*
 * Selvage for C++17: selvage.h as move-only handles, views and values. Header only; needs neither
 * exceptions nor RTTI.
 *
 *   auto node = selvage::node::attach("/etc/selvage/selvage.toml", "n1");
 *   if (!node) return fail(node.error().text());
 *   auto session = node->create();
 *   if (!session || !session->set("user", "ada")) ...
 *   auto commit = session->commit();               // commit->copies: on how many servers it is safe
 *
 * RULES, beside those of selvage.h
 *
 * Errors.     Are values: a status, or a result<T>, which has a status and a T. Both are [[nodiscard]]. A
 *             result that failed has an empty T, so that reading it by mistake is defined: an empty handle,
 *             on which everything fails with code::null; an empty view; zero. Nothing here throws, but the
 *             standard library without memory. status::text() is for people; decide by status::is().
 * Ownership.  node and session close themselves, are moved and never copied; a moved-from one is empty. A
 *             session that is closed uncommitted forgets its changes and gives up its lock: keep it open as
 *             short as possible.
 * Views.      What a session lends (value, bytes, std::string_view) is the session's: valid until the next
 *             call on it that is not describe, read, read_as or attributes, and no longer than it is open.
 *             Copy what must live longer. A temporary lends nothing: that does not compile.
 * Threads.    One node may be used by any number of threads. A session may be moved between threads; one
 *             thread at a time uses it. A status has its own copy of the text.
 * Processes.  Attach after fork. In a forked child everything on an inherited handle answers code::forked,
 *             and closing or destroying it does nothing.
 * Blocking.   As in selvage.h: attach, create, open, commit, destroy, regenerate and destroy_owner may wait,
 *             bounded; their forms with _start never do.
 */
#ifndef SELVAGE_HPP
#define SELVAGE_HPP

#include <selvage.h>
#include <selvage/values.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

namespace selvage {

// How a session is opened.
enum class open_mode : std::uint32_t {
    exclusive = SELVAGE_OPEN_EXCLUSIVE,
    read_only = SELVAGE_OPEN_READ_ONLY,
    unlocked = SELVAGE_OPEN_UNLOCKED,
};

// Which acknowledgements a commit waits for.
enum class ack : std::uint32_t {
    all = SELVAGE_ACK_ALL,
    one = SELVAGE_ACK_ONE,
    none = SELVAGE_ACK_NONE,
};

// What a completion is one of.
enum class operation : std::uint32_t {
    open = SELVAGE_OPERATION_OPEN,
    create = SELVAGE_OPERATION_CREATE,
    commit = SELVAGE_OPERATION_COMMIT,
    destroy = SELVAGE_OPERATION_DESTROY,
    regenerate = SELVAGE_OPERATION_REGENERATE,
    destroy_owner = SELVAGE_OPERATION_DESTROY_OWNER,
};

using cookie = selvage_cookie;
using node_info = selvage_node_info;
using session_info = selvage_session_info;
using commit_info = selvage_commit;

// The text in a field of fixed size: a node's name, a session's id, a tag.
template <std::size_t Size> std::string_view view(const char (&field)[Size]) noexcept
{
    const std::string_view all(field, Size);
    return all.substr(0, all.find('\0'));
}

inline std::string_view view(const selvage_tag &tag) noexcept { return view(tag.text); }

// The library's version, as "major.minor.patch".
inline std::string_view version() noexcept { return selvage_version(); }

// An attribute where it lies.
struct attribute {
    std::string_view name;
    selvage::value value;
};

// An attribute as an HTTP body has it, and its SELVAGE_TYPE_*.
struct rendered {
    selvage::bytes body;
    std::uint32_t kind = 0;
};

namespace detail {

template <class> inline constexpr bool never = false;

// An empty view may have no address; the library wants one.
inline const char *address(std::string_view text) noexcept { return text.data() ? text.data() : ""; }

inline const std::uint8_t *address(bytes some) noexcept
{
    static constexpr std::uint8_t none = 0;
    return some.data() ? some.data() : &none;
}

// What a call gave that has written to `value` if it ended well.
template <class Value> result<Value> given(selvage_status answer, const Value &value)
{
    return answer == SELVAGE_STATUS_OK ? result<Value>(value) : result<Value>(status(answer));
}

// The same of text that is lent.
template <class Lend> result<std::string_view> lent(const Lend &lend)
{
    const char *chars = nullptr;
    std::size_t size = 0;
    const selvage_status answer = lend(&chars, &size);
    return given(answer, std::string_view(chars, size));
}

// The same of a new handle.
template <class Handle, class Raw, class Make> result<Handle> made(const Make &make)
{
    Raw *raw = nullptr;
    const selvage_status answer = make(&raw);
    return answer == SELVAGE_STATUS_OK ? result<Handle>(Handle(raw)) : result<Handle>(status(answer));
}

// An owner for selvage.h, where NULL is nobody.
struct owner_of {
    explicit owner_of(std::optional<std::string_view> owner) noexcept
        : chars(owner ? address(*owner) : nullptr), size(owner ? owner->size() : 0) {}

    const char *chars;
    std::size_t size;
};

inline value value_of(const selvage_value &raw) noexcept
{
    switch (raw.kind) {
    case SELVAGE_TYPE_BYTES:
        return bytes(raw.bytes, raw.bytes_len);
    case SELVAGE_TYPE_TEXT:
        return bytes(raw.bytes, raw.bytes_len).chars();
    case SELVAGE_TYPE_I64:
        return raw.integer;
    case SELVAGE_TYPE_F64:
        return raw.number;
    case SELVAGE_TYPE_BOOL:
        return raw.truth;
    default:
        return std::monostate{};
    }
}

// A handle of selvage.h with one owner. An empty one is NULL there, which every function answers.
template <class Raw, selvage_status (*Close)(Raw *)> class handle {
public:
    handle() noexcept = default;
    handle(handle &&other) noexcept : raw_(other.release()) {}
    handle(const handle &) = delete;
    handle &operator=(const handle &) = delete;
    ~handle() { close(); }

    handle &operator=(handle &&other) noexcept
    {
        if (this != &other) {
            close();
            raw_ = other.release();
        }
        return *this;
    }

    // Whether there is something in it.
    explicit operator bool() const noexcept { return raw_ != nullptr; }

    void close() noexcept { (void)Close(release()); }

    // For calls of selvage.h; it stays this handle's.
    Raw *get() const noexcept { return raw_; }

    // Gives it to the caller, who closes it.
    [[nodiscard]] Raw *release() noexcept { return std::exchange(raw_, nullptr); }

protected:
    explicit handle(Raw *raw) noexcept : raw_(raw) {}

private:
    Raw *raw_ = nullptr;
};

}  // namespace detail

struct completion;

// The attributes of a session, in the order of their names: for (auto [name, value] : session.attributes()).
// Ends early if the session can be read no more.
class attribute_range {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = attribute;
        using difference_type = std::ptrdiff_t;
        using pointer = const attribute *;
        using reference = const attribute &;

        iterator() noexcept = default;
        explicit iterator(const selvage_session *session) noexcept : session_(session) { look(); }

        reference operator*() const noexcept { return here_; }
        pointer operator->() const noexcept { return &here_; }
        iterator &operator++() noexcept
        {
            ++index_;
            look();
            return *this;
        }
        iterator operator++(int) noexcept
        {
            iterator before = *this;
            ++*this;
            return before;
        }
        friend bool operator==(const iterator &one, const iterator &two) noexcept
        {
            return one.session_ == two.session_ && (one.session_ == nullptr || one.index_ == two.index_);
        }
        friend bool operator!=(const iterator &one, const iterator &two) noexcept { return !(one == two); }

    private:
        void look() noexcept
        {
            const char *name = nullptr;
            std::size_t name_len = 0;
            selvage_value raw{};
            if (selvage_session_read_at(session_, index_, &name, &name_len, &raw) == SELVAGE_STATUS_OK) {
                here_ = attribute{{name, name_len}, detail::value_of(raw)};
            } else {
                session_ = nullptr;
            }
        }

        const selvage_session *session_ = nullptr;
        std::size_t index_ = 0;
        attribute here_;
    };

    explicit attribute_range(const selvage_session *session) noexcept : session_(session) {}
    iterator begin() const noexcept { return iterator(session_); }
    iterator end() const noexcept { return iterator(); }

private:
    const selvage_session *session_;
};

// An open session. Closing it, or its end, releases its lock.
class session : public detail::handle<selvage_session, selvage_session_close> {
public:
    session() noexcept = default;
    // Takes over what a function of selvage.h has written.
    explicit session(selvage_session *raw) noexcept : handle(raw) {}

    // What is known beside the attributes: id, version, copies, times, whether the browser needs a cookie.
    result<session_info> describe() const
    {
        session_info info{};
        return detail::given(selvage_session_describe(get(), &info), info);
    }

    // One attribute: no copy, no allocation, no system call. code::missing if there is none.
    result<value> read(std::string_view name) const &
    {
        selvage_value raw{};
        const selvage_status answer = selvage_session_read(get(), detail::address(name), name.size(), &raw);
        return detail::given(answer, detail::value_of(raw));
    }
    result<value> read(std::string_view name) const && = delete;

    // One attribute that must be of this type (std::int64_t, std::string_view, ...), or code::wrong_type.
    template <class Type> result<Type> read_as(std::string_view name) const &
    {
        auto found = read(name);
        if (!found) {
            return std::move(found).error();
        }
        const Type *typed = std::get_if<Type>(&*found);
        return typed != nullptr ? result<Type>(*typed) : status(code::wrong_type);
    }
    template <class Type> result<Type> read_as(std::string_view name) const && = delete;

    attribute_range attributes() const & noexcept { return attribute_range(get()); }
    attribute_range attributes() const && = delete;

    // One attribute as the body of an HTTP answer.
    result<rendered> render(std::string_view name) &
    {
        const std::uint8_t *data = nullptr;
        std::size_t size = 0;
        std::uint32_t kind = 0;
        const selvage_status answer =
            selvage_session_render(get(), detail::address(name), name.size(), &data, &size, &kind);
        return detail::given(answer, rendered{{data, size}, kind});
    }
    result<rendered> render(std::string_view name) && = delete;

    // The whole session as JSON.
    result<std::string_view> json() & { 
        return detail::lent([this](auto... to) { return selvage_session_json(get(), to...); });
    }
    result<std::string_view> json() && = delete;

    // The value of the Set-Cookie header that gives the browser this session.
    result<std::string_view> set_cookie() & { 
        return detail::lent([this](auto... to) { return selvage_cookie_set(get(), to...); });
    }
    result<std::string_view> set_cookie() && = delete;

    // The user that it belongs to; code::missing if nobody.
    result<std::string_view> owner() const & { 
        return detail::lent([this](auto... to) { return selvage_session_owner(get(), to...); });
    }
    result<std::string_view> owner() const && = delete;

    // Says which user it belongs to, or nobody. Counts, as all changes, with the next commit.
    status set_owner(std::optional<std::string_view> owner)
    {
        const detail::owner_of whom(owner);
        return status(selvage_session_set_owner(get(), whom.chars, whom.size));
    }

    // Sets an attribute to a truth value, a whole number, a floating-point number, text (what converts to
    // std::string_view; UTF-8), or bytes.
    template <class Type> status set(std::string_view name, const Type &to)
    {
        const char *chars = detail::address(name);
        if constexpr (std::is_same_v<Type, bool>) {
            return status(selvage_session_set_bool(get(), chars, name.size(), to ? 1 : 0));
        } else if constexpr (std::is_integral_v<Type>) {
            static_assert(sizeof(Type) < sizeof(std::int64_t) || std::is_signed_v<Type>,
                          "not every unsigned number of 64 bits fits: cast it to std::int64_t");
            return status(selvage_session_set_i64(get(), chars, name.size(), static_cast<std::int64_t>(to)));
        } else if constexpr (std::is_floating_point_v<Type>) {
            static_assert(sizeof(Type) <= sizeof(double), "cast it to double");
            return status(selvage_session_set_f64(get(), chars, name.size(), static_cast<double>(to)));
        } else if constexpr (std::is_convertible_v<const Type &, std::string_view>) {
            const std::string_view text = to;
            return status(
                selvage_session_set_text(get(), chars, name.size(), detail::address(text), text.size()));
        } else if constexpr (std::is_convertible_v<const Type &, bytes>) {
            const bytes some = to;
            return status(
                selvage_session_set_bytes(get(), chars, name.size(), detail::address(some), some.size()));
        } else {
            static_assert(detail::never<Type>, "not a type of an attribute");
        }
    }

    // Removes an attribute; code::missing if there was none.
    status remove(std::string_view name)
    {
        return status(selvage_session_remove(get(), detail::address(name), name.size()));
    }

    // Adds to a whole number, a missing one counting as 0, and gives the new one; code::wrong_type if it is
    // something else.
    result<std::int64_t> incr(std::string_view name, std::int64_t by = 1)
    {
        std::int64_t integer = 0;
        const char *chars = detail::address(name);
        return detail::given(selvage_session_incr(get(), chars, name.size(), by, &integer), integer);
    }

    // Makes the changes the session's new version. With fewer servers up it succeeds with fewer copies.
    result<commit_info> commit(ack wait_for = ack::all)
    {
        commit_info reached{};
        const auto which = static_cast<std::uint32_t>(wait_for);
        return detail::given(selvage_session_commit(get(), which, &reached), reached);
    }

    // Ends the session for ever; the handle stays to be closed.
    status destroy() { return status(selvage_session_destroy(get())); }

    // Gives it a new id, when somebody logs in. The browser needs the new cookie.
    status regenerate() { return status(selvage_session_regenerate(get())); }

    // The same without waiting. If the completion that they give is pending(), another one with this
    // user_data comes from node::next_completion; until then this session can only be moved and closed.
    completion commit_start(ack wait_for, void *user_data);
    completion destroy_start(void *user_data);
    completion regenerate_start(void *user_data);
};

// What opening gave: a session; code::missing, if there is none; code::elsewhere, if another node has it,
// whose tag it says.
class [[nodiscard]] opened : public result<session> {
public:
    opened(result<session> what, const selvage_tag &elsewhere)
        : result<session>(std::move(what)), elsewhere_(elsewhere) {}

    std::string_view elsewhere() const & noexcept { return view(elsewhere_); }
    std::string_view elsewhere() const && = delete;

private:
    selvage_tag elsewhere_;
};

// How an operation has ended, or that it has not.
struct [[nodiscard]] completion {
    void *user_data = nullptr;
    operation what{};
    status outcome;
    // Of an open or a create that ended well.
    selvage::session session;
    // Of a commit that ended well.
    commit_info commit{};
    // Of an open that ended with code::elsewhere.
    selvage_tag elsewhere{};
    // Of a destroy_owner that ended well: how many sessions it has destroyed.
    std::uint64_t count = 0;

    // It is under way: exactly one completion with its user_data will come.
    bool pending() const noexcept { return outcome.is(code::pending); }

    // From what selvage.h has answered and, unless that is pending or an error, written.
    completion() = default;
    completion(selvage_status answer, const selvage_completion &raw, operation which, void *data)
        : user_data(data), what(which), outcome(answer), session(raw.session), commit(raw.commit),
          elsewhere(raw.elsewhere), count(raw.count) {}
};

inline completion session::commit_start(ack wait_for, void *user_data)
{
    selvage_completion now{};
    const auto which = static_cast<std::uint32_t>(wait_for);
    return {selvage_session_commit_start(get(), which, user_data, &now), now, operation::commit, user_data};
}

inline completion session::destroy_start(void *user_data)
{
    selvage_completion now{};
    return {selvage_session_destroy_start(get(), user_data, &now), now, operation::destroy, user_data};
}

inline completion session::regenerate_start(void *user_data)
{
    selvage_completion now{};
    return {selvage_session_regenerate_start(get(), user_data, &now), now, operation::regenerate, user_data};
}

// This process's part in a web node. One is enough for all threads.
class node : public detail::handle<selvage_node, selvage_node_close> {
public:
    node() noexcept = default;
    // Takes over what a function of selvage.h has written.
    explicit node(selvage_node *raw) noexcept : handle(raw) {}

    // Attaches this process. Without a file: SELVAGE_CONFIG, or else the default path; without a name:
    // SELVAGE_NODE, or else the only node of the file. Waits that long until the node has joined the cluster;
    // with 0 not at all, and what may wait then waits for that, too.
    static result<node> attach(const char *config = nullptr, const char *name = nullptr,
                               std::chrono::milliseconds wait = std::chrono::seconds(5))
    {
        using limits = std::chrono::duration<std::uint32_t, std::milli>;
        const auto most = std::chrono::milliseconds(limits::max().count());
        const auto bounded = wait.count() < 0 ? std::chrono::milliseconds(0) : wait > most ? most : wait;
        const auto wait_ms = static_cast<std::uint32_t>(bounded.count());
        return detail::made<node, selvage_node>(
            [&](selvage_node **raw) { return selvage_node_attach(config, name, wait_ms, raw); });
    }

    result<node_info> describe() const
    {
        node_info info{};
        return detail::given(selvage_node_describe(get(), &info), info);
    }

    // Finds the session's cookie in a Cookie header; code::missing if there is none that is valid.
    result<cookie> read_cookie(std::string_view header) const
    {
        cookie found{};
        return detail::given(
            selvage_cookie_read(get(), detail::address(header), header.size(), &found), found);
    }

    // The value of the Set-Cookie header that removes the cookie; valid as long as the node is open.
    result<std::string_view> clear_cookie() const &
    {
        return detail::lent([this](auto... to) { return selvage_cookie_clear(get(), to...); });
    }
    result<std::string_view> clear_cookie() const && = delete;

    // A new session with a new id, locked. Nobody else sees it before its first commit.
    result<session> create(std::optional<std::string_view> owner = std::nullopt) const
    {
        const detail::owner_of whom(owner);
        return detail::made<session, selvage_session>([&](selvage_session **raw) {
            return selvage_session_create(get(), whom.chars, whom.size, raw);
        });
    }

    // The session that a cookie names.
    opened open(const cookie &which, open_mode mode) const
    {
        selvage_tag elsewhere{};
        auto what = detail::made<session, selvage_session>([&](selvage_session **raw) {
            return selvage_session_open(get(), &which, static_cast<std::uint32_t>(mode), raw, &elsewhere);
        });
        return {std::move(what), elsewhere};
    }

    // The same without waiting, see session::commit_start.
    completion create_start(std::optional<std::string_view> owner, void *user_data) const
    {
        selvage_completion now{};
        const detail::owner_of whom(owner);
        return {selvage_session_create_start(get(), whom.chars, whom.size, user_data, &now), now,
                operation::create, user_data};
    }
    completion open_start(const cookie &which, open_mode mode, void *user_data) const
    {
        selvage_completion now{};
        const auto number = static_cast<std::uint32_t>(mode);
        return {selvage_session_open_start(get(), &which, number, user_data, &now), now, operation::open,
                user_data};
    }

    // Destroys every session of an owner, at whatever node ("log me out everywhere"), and says how many they
    // were. What the caller has open for changes must be closed before.
    result<std::uint64_t> destroy_owner(std::string_view owner) const
    {
        std::uint64_t count = 0;
        const char *chars = detail::address(owner);
        return detail::given(selvage_node_destroy_owner(get(), chars, owner.size(), &count), count);
    }
    completion destroy_owner_start(std::string_view owner, void *user_data) const
    {
        selvage_completion now{};
        const char *chars = detail::address(owner);
        return {selvage_node_destroy_owner_start(get(), chars, owner.size(), user_data, &now), now,
                operation::destroy_owner, user_data};
    }

    // Readable while completions wait: one per process, for poll or an event loop. Never read from it and
    // never close it.
    result<int> completion_fd() const
    {
        int fd = -1;
        return detail::given(selvage_node_completion_fd(get(), &fd), fd);
    }

    // The next completion, of any session of this process; code::empty if none waits.
    result<completion> next_completion() const
    {
        selvage_completion raw{};
        const selvage_status answer = selvage_node_next_completion(get(), &raw);
        if (answer != SELVAGE_STATUS_OK) {
            return status(answer);
        }
        return completion(raw.status, raw, static_cast<operation>(raw.operation), raw.user_data);
    }

    // Gives up an open or create that is under way: good if no completion will come, else code::missing.
    status cancel(const void *user_data) const { return status(selvage_node_cancel(get(), user_data)); }
};

// Reads and checks a configuration, and whether it names the node, without attaching.
inline status check_config(const char *config = nullptr, const char *name = nullptr)
{
    return status(selvage_config_check(config, name));
}

}  // namespace selvage

#endif  // SELVAGE_HPP
