/*
 * How calls of Selvage end (selvage::code, status, result), and what attributes are (bytes, value). Included
 * by <selvage.hpp>, whose head has the rules.
 */
#ifndef SELVAGE_VALUES_HPP
#define SELVAGE_VALUES_HPP

#include <selvage.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

namespace selvage {

// What can be the answer of a call. Later versions may add some: treat one that you do not know by its range.
enum class code : std::int32_t {
    ok = SELVAGE_STATUS_OK,
    pending = SELVAGE_STATUS_PENDING,
    missing = SELVAGE_STATUS_MISSING,
    elsewhere = SELVAGE_STATUS_ELSEWHERE,
    wrong_type = SELVAGE_STATUS_WRONG_TYPE,
    empty = SELVAGE_STATUS_EMPTY,
    null = SELVAGE_STATUS_NULL,
    invalid = SELVAGE_STATUS_INVALID,
    too_large = SELVAGE_STATUS_TOO_LARGE,
    forked = SELVAGE_STATUS_FORKED,
    read_only = SELVAGE_STATUS_READ_ONLY,
    underway = SELVAGE_STATUS_UNDERWAY,
    full = SELVAGE_STATUS_FULL,
    busy = SELVAGE_STATUS_BUSY,
    timeout = SELVAGE_STATUS_TIMEOUT,
    ownership_lost = SELVAGE_STATUS_OWNERSHIP_LOST,
    lock_lost = SELVAGE_STATUS_LOCK_LOST,
    gone = SELVAGE_STATUS_GONE,
    not_ready = SELVAGE_STATUS_NOT_READY,
    not_yet = SELVAGE_STATUS_NOT_YET,
    unreachable = SELVAGE_STATUS_UNREACHABLE,
    denied = SELVAGE_STATUS_DENIED,
    conflict = SELVAGE_STATUS_CONFLICT,
    os = SELVAGE_STATUS_OS,
    version_mismatch = SELVAGE_STATUS_VERSION_MISMATCH,
    too_small = SELVAGE_STATUS_TOO_SMALL,
    corrupt = SELVAGE_STATUS_CORRUPT,
    internal = SELVAGE_STATUS_INTERNAL,
};

// How a call ended. True if well.
class [[nodiscard]] status {
public:
    // Good.
    status() noexcept = default;

    // What a function of selvage.h has answered: made right after it and by the same thread, whose text of
    // the last failure it copies.
    explicit status(selvage_status answer) : number_(answer)
    {
        if (answer < SELVAGE_STATUS_NULL) {
            return;
        }
        text_.resize(selvage_last_error(nullptr, 0));
        // The string has room for the NUL behind its end.
        (void)selvage_last_error(text_.data(), text_.size() + 1);
    }

    explicit status(code answer) : status(static_cast<selvage_status>(answer)) {}

    bool ok() const noexcept { return number_ == SELVAGE_STATUS_OK; }
    explicit operator bool() const noexcept { return ok(); }
    bool is(code which) const noexcept { return number() == which; }
    code number() const noexcept { return static_cast<code>(number_); }

    // It may go better later: Retry-After is the answer for a browser.
    bool may_pass() const noexcept
    {
        return number_ >= SELVAGE_STATUS_FULL && number_ < SELVAGE_STATUS_DENIED;
    }

    // One sentence for a person; never empty. The status's, as long as that lives unchanged.
    std::string_view text() const & noexcept
    {
        return text_.empty() ? std::string_view(selvage_status_text(number_)) : std::string_view(text_);
    }
    std::string_view text() const && = delete;

private:
    selvage_status number_ = SELVAGE_STATUS_OK;
    std::string text_;
};

// What a call gave: a value, or why there is none. True if there is one.
template <class Value> class [[nodiscard]] result {
public:
    // NOLINTNEXTLINE(google-explicit-constructor): `return status;` is what this is for.
    result(status why) : status_(std::move(why)) {}
    // NOLINTNEXTLINE(google-explicit-constructor): and so is `return value;`.
    result(Value value) : value_(std::move(value)) {}

    bool ok() const noexcept { return status_.ok(); }
    explicit operator bool() const noexcept { return ok(); }
    bool is(code which) const noexcept { return status_.is(which); }
    const status &error() const & noexcept { return status_; }
    status error() && { return std::move(status_); }

    // The value; an empty one if the call failed.
    Value &operator*() & noexcept { return value_; }
    const Value &operator*() const & noexcept { return value_; }
    Value &&operator*() && noexcept { return std::move(value_); }
    Value *operator->() & noexcept { return &value_; }
    const Value *operator->() const & noexcept { return &value_; }
    // Of a result that is a temporary: only what outlives it, or has been copied into it, can be looked at.
    template <class Seen = Value, std::enable_if_t<std::is_trivially_copyable_v<Seen>, int> = 0>
    Seen *operator->() && noexcept { return &value_; }
    template <class Handle = Value, std::enable_if_t<!std::is_trivially_copyable_v<Handle>, int> = 0>
    Handle *operator->() && = delete;

private:
    status status_;
    Value value_{};
};

// Bytes that somebody else owns; as std::span<const std::uint8_t>, which C++20 has.
class bytes {
public:
    using value_type = std::uint8_t;
    using const_iterator = const std::uint8_t *;

    constexpr bytes() noexcept = default;
    bytes(const void *data, std::size_t size) noexcept
        : data_(static_cast<const std::uint8_t *>(data)), size_(size) {}

    // Of an array, a vector, a span, ...: anything that has its elements, of one byte each, in one piece.
    template <class Container,
              class Element = std::remove_pointer_t<decltype(std::declval<const Container &>().data())>,
              std::enable_if_t<sizeof(Element) == 1 && std::is_trivially_copyable_v<Element>, int> = 0>
    // NOLINTNEXTLINE(google-explicit-constructor): a view, as in std::span.
    bytes(const Container &container) noexcept : bytes(container.data(), container.size()) {}

    const std::uint8_t *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    const_iterator begin() const noexcept { return data_; }
    const_iterator end() const noexcept { return data_ + size_; }
    std::uint8_t operator[](std::size_t at) const noexcept { return data_[at]; }

    // The same as text, whatever it says.
    std::string_view chars() const noexcept { return {reinterpret_cast<const char *>(data_), size_}; }

private:
    const std::uint8_t *data_ = nullptr;
    std::size_t size_ = 0;
};

// An attribute's value where it lies, for std::get_if and std::visit. Its index() is its SELVAGE_TYPE_*;
// std::monostate is a type of a later version, or no value.
using value = std::variant<std::monostate, bytes, std::string_view, std::int64_t, double, bool>;

}  // namespace selvage

#endif  // SELVAGE_VALUES_HPP
