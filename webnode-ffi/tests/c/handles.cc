// Everything that selvage.hpp has, used well and used wrong, against a running cluster. Says how many checks
// held; the first one that does not hold ends it.
//
//   handles <configuration file> <node> <another node>
#include <selvage.hpp>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

static int checks = 0;

static void check(bool holds, const char *what, int line)
{
    if (!holds) {
        std::fprintf(stderr, "line %d: %s\n", line, what);
        std::_Exit(1);
    }
    checks++;
}

#define CHECK(what) check(static_cast<bool>(what), #what, __LINE__)
#define IS(what, which) check((what).is(selvage::code::which), #what " is " #which, __LINE__)

template <class Function> static void check_end_of_child(const Function &function, int line)
{
    const pid_t child = fork();
    if (child == 0) {
        function();
        // Not by exit: Valgrind would look for leaks, and what the parent's threads hold looks like some.
        (void)raise(SIGKILL);
    }
    int end = 0;
    check(child > 0 && waitpid(child, &end, 0) == child, "a child", line);
    check(WIFSIGNALED(end) && WTERMSIG(end) == SIGKILL, "the child's checks", line);
}

static selvage::completion finish(const selvage::node &node, selvage::completion begun)
{
    if (!begun.pending()) {
        return begun;
    }
    auto fd = node.completion_fd();
    CHECK(fd);
    for (int round = 0; round < 100; round++) {
        auto done = node.next_completion();
        if (done) {
            CHECK(done->user_data == begun.user_data);
            return std::move(*done);
        }
        IS(done, empty);
        pollfd ready{*fd, POLLIN, 0};
        (void)poll(&ready, 1, 100);
    }
    check(false, "a completion in time", __LINE__);
    return {};
}

static selvage::cookie makes_and_reads(const selvage::node &node)
{
    auto session = node.create("ada");
    CHECK(session);
    const std::vector<std::uint8_t> raw{0, 255, 7};
    CHECK(session->set("text", "grüße"));
    CHECK(session->set("string", std::string("of the library")));
    CHECK(session->set("empty", std::string_view()));
    CHECK(session->set("raw", raw));
    CHECK(session->set("nothing", selvage::bytes()));
    CHECK(session->set("truth", true));
    CHECK(session->set("number", 0.5));
    CHECK(session->set("small", static_cast<unsigned char>(200)));
    IS(session->set("bad", "\xff"), invalid);
    IS(session->set("", "no name"), invalid);
    CHECK(*session->incr("visits") == 1 && *session->incr("visits", 41) == 42);
    IS(session->incr("text"), wrong_type);
    IS(session->remove("no such"), missing);
    CHECK(session->remove("small"));

    CHECK(*session->read_as<std::string_view>("text") == "grüße");
    const auto empty = session->read_as<std::string_view>("empty");
    CHECK(empty && empty->empty());
    auto bytes = session->read_as<selvage::bytes>("raw");
    CHECK(bytes && std::equal(bytes->begin(), bytes->end(), raw.begin(), raw.end()) && (*bytes)[1] == 255);
    CHECK(*session->read_as<bool>("truth") && *session->read_as<double>("number") == 0.5);
    CHECK(*session->read_as<std::int64_t>("visits") == 42);
    IS(session->read_as<std::int64_t>("text"), wrong_type);
    IS(session->read("no such"), missing);
    CHECK(std::holds_alternative<std::monostate>(*session->read("no such")));
    CHECK(session->read("visits")->index() == SELVAGE_TYPE_I64);
    CHECK(session->read("raw")->index() == SELVAGE_TYPE_BYTES);

    std::string names;
    for (const auto &[name, value] : session->attributes()) {
        CHECK(value.index() != 0);
        names.append(name).append(" ");
    }
    CHECK(names == "empty nothing number raw string text truth visits ");
    const auto range = session->attributes();
    const auto is_text = [](const auto &one) { return one.value.index() == SELVAGE_TYPE_TEXT; };
    CHECK(std::count_if(range.begin(), range.end(), is_text) == 3);

    auto commit = session->commit();
    CHECK(commit && commit->copies == 2 && commit->shortfall == SELVAGE_SHORT_NOT);
    auto info = session->describe();
    CHECK(info && info->needs_cookie && !info->read_only && info->attribute_count == 8);
    CHECK(session->json()->find(selvage::view(info->id)) != std::string_view::npos);
    CHECK(session->render("visits")->body.chars() == "42");
    CHECK(session->render("raw")->kind == SELVAGE_TYPE_BYTES);
    CHECK(*session->owner() == "ada" && session->set_owner(std::nullopt));
    IS(session->owner(), missing);
    auto value = session->set_cookie();
    CHECK(value && value->substr(0, 8) == "selvage=");
    const std::string header(value->substr(0, value->find(';')));
    auto found = node.read_cookie(header);
    CHECK(found && found->host == info->cookie.host);
    CHECK(std::equal(found->id, found->id + sizeof(found->id), info->cookie.id));
    IS(node.read_cookie("selvage=forged"), missing);
    IS(node.read_cookie({}), missing);
    CHECK(node.clear_cookie()->find("Max-Age=0") != std::string_view::npos);
    return info->cookie;
}

static void opens(const selvage::node &node, const selvage::node &other, const selvage::cookie &cookie)
{
    auto reader = node.open(cookie, selvage::open_mode::read_only);
    CHECK(reader && reader->describe()->read_only && reader.elsewhere().empty());
    IS(reader->set("text", "changed"), read_only);
    const auto refused = reader->set("text", "changed");
    CHECK(!refused.may_pass() && !refused.text().empty());
    auto elsewhere = other.open(cookie, selvage::open_mode::read_only);
    IS(elsewhere, elsewhere);
    CHECK(elsewhere.elsewhere() == selvage::view(node.describe()->tag) && elsewhere.elsewhere().size() == 13);
    selvage::cookie stranger = cookie;
    stranger.id[0] = static_cast<std::uint8_t>(~stranger.id[0]);
    IS(node.open(stranger, selvage::open_mode::exclusive), missing);
    IS(node.open(cookie, static_cast<selvage::open_mode>(77)), invalid);

    // The lock goes with the handle, wherever that is moved.
    auto holder = node.open(cookie, selvage::open_mode::exclusive);
    CHECK(holder && holder->set("held", 1));
    selvage::session moved = std::move(*holder);
    std::thread([session = std::move(moved)]() mutable { CHECK(session.commit()->copies == 2); }).join();
    const auto next = node.open(cookie, selvage::open_mode::exclusive);
    CHECK(next && *next->read_as<std::int64_t>("held") == 1);
}

// Two that change different attributes at the same time keep both changes, and all increments.
static void merges(const selvage::node &node, const selvage::cookie &cookie)
{
    auto one = node.open(cookie, selvage::open_mode::unlocked);
    auto two = node.open(cookie, selvage::open_mode::unlocked);
    CHECK(one && two && one->set("one", 1) && two->set("two", 2));
    CHECK(one->incr("both") && two->incr("both", 2));
    CHECK(one->commit() && two->commit());
    CHECK(*two->read_as<std::int64_t>("one") == 1 && *two->read_as<std::int64_t>("both") == 3);
}

static void misuse(const selvage::node &node, const selvage::cookie &cookie)
{
    selvage::session empty;
    CHECK(!empty);
    IS(empty.set("a", 1), null);
    IS(empty.describe(), null);
    IS(empty.read("a"), null);
    IS(empty.json(), null);
    IS(empty.commit(), null);
    IS(empty.commit_start(selvage::ack::all, nullptr).outcome, null);
    CHECK(empty.attributes().begin() == empty.attributes().end());
    const auto why = empty.describe();
    CHECK(why.error().text().find("NULL") != std::string_view::npos && !why.error().may_pass());
    empty.close();

    auto opened = node.open(cookie, selvage::open_mode::exclusive);
    CHECK(opened);
    selvage::session moved(std::move(*opened));
    IS(opened->read("text"), null);
    CHECK(moved.read("text"));
    selvage::session &same = moved;
    moved = std::move(same);
    CHECK(moved.read("text"));
    moved = selvage::session();
    IS(moved.read("text"), null);

    // A failed result has an empty value, not another one's.
    auto failed = selvage::node::attach("/nonexistent/selvage.toml", "n1");
    IS(failed, os);
    CHECK(failed.error().text().find("/nonexistent/selvage.toml") != std::string_view::npos);
    IS(failed->create(), null);
    const auto never = failed->open(cookie, selvage::open_mode::exclusive);
    IS(never, null);
    IS(never->read("text"), null);
    IS(selvage::check_config("/nonexistent/selvage.toml"), os);
}

static void waits_for_nothing(const selvage::node &node)
{
    int mark = 0;
    auto created = finish(node, node.create_start("bob", &mark));
    CHECK(created.outcome && created.user_data == &mark && created.what == selvage::operation::create);
    selvage::session session = std::move(created.session);
    CHECK(session.set("a", 1));
    auto commit = finish(node, session.commit_start(selvage::ack::one, &mark));
    CHECK(commit.outcome && commit.what == selvage::operation::commit);
    CHECK(commit.commit.copies >= 1);
    const auto cookie = session.describe()->cookie;
    auto waiting = node.open_start(cookie, selvage::open_mode::exclusive, &mark);
    CHECK(waiting.pending() && waiting.outcome.is(selvage::code::pending) && !waiting.session);
    CHECK(node.cancel(&mark));
    IS(node.cancel(&mark), missing);
    waiting = node.open_start(cookie, selvage::open_mode::exclusive, &mark);
    CHECK(waiting.pending());
    session.close();
    auto mine = finish(node, std::move(waiting));
    CHECK(mine.outcome && mine.session.read_as<std::int64_t>("a").ok());
    CHECK(finish(node, mine.session.regenerate_start(nullptr)).outcome);
    IS(finish(node, node.open_start(cookie, selvage::open_mode::exclusive, nullptr)).outcome, missing);
    CHECK(finish(node, mine.session.destroy_start(nullptr)).outcome);
    IS(mine.session.read("a"), gone);
    IS(node.next_completion(), empty);
}

static void ends_all_of_an_owner(const selvage::node &node, const selvage::node &other)
{
    selvage::cookie cookie{};
    for (const auto *place : {&node, &other, &node}) {
        auto session = place->create("carol");
        CHECK(session && session->commit());
        cookie = session->describe()->cookie;
    }
    auto all = node.destroy_owner("carol");
    // Where all is many times slower, a node may not have answered in time: what it had is gone all the same.
    bool again = false;
    for (int round = 0; round < 20 && !all && all.error().may_pass(); round++) {
        again = true;
        all = node.destroy_owner("carol");
    }
    CHECK(all && (*all == 3 || (again && *all < 3)));
    IS(node.open(cookie, selvage::open_mode::read_only), missing);
    IS(node.destroy_owner(""), invalid);
    auto none = finish(node, node.destroy_owner_start("carol", nullptr));
    CHECK((none.outcome || none.outcome.may_pass()) && none.count == 0);
    CHECK(none.what == selvage::operation::destroy_owner);
}

int main(int, char **argv)
{
    auto attached = selvage::node::attach(argv[1], argv[2], std::chrono::seconds(20));
    auto other = selvage::node::attach(argv[1], argv[3], std::chrono::seconds(20));
    CHECK(attached && other && selvage::view(attached->describe()->name) == argv[2]);
    CHECK(selvage::check_config(argv[1], argv[2]) && !selvage::version().empty());
    const selvage::node node = std::move(*attached);
    IS(attached->describe(), null);

    const auto cookie = makes_and_reads(node);
    opens(node, *other, cookie);
    merges(node, cookie);
    misuse(node, cookie);
    waits_for_nothing(node);
    ends_all_of_an_owner(node, *other);

    auto session = node.open(cookie, selvage::open_mode::exclusive);
    CHECK(session);
    check_end_of_child([&] {
        IS(session->read("text"), forked);
        IS(session->commit(), forked);
        IS(node.create(), forked);
        IS(node.next_completion(), forked);
        CHECK(session->attributes().begin() == session->attributes().end());
        // Closing in the child leaves the parent's session locked and open.
        session->close();
    }, __LINE__);
    CHECK(*session->read_as<std::string_view>("text") == "grüße");
    CHECK(session->regenerate() && session->destroy());
    IS(session->commit(), gone);
    std::printf("%d checks\n", checks);
    return 0;
}
