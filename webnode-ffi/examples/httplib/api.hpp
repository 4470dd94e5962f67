// The session of a request, and session data over HTTP: the same answers as nginx with the module gives in a
// location with selvage_api (docs/using.md).
#ifndef SELVAGE_EXAMPLE_API_HPP
#define SELVAGE_EXAMPLE_API_HPP

#include <httplib.h>
#include <selvage.hpp>

#include <string>

namespace example {

// Answers what is below one path, `/session` for instance. One object serves all threads.
class api {
public:
    api(const selvage::node &node, const selvage::node_info &info, std::string path);

    bool is_for(const httplib::Request &request) const;

    // Answers a request for session data. `body` is nullptr if it has none.
    void answer(const httplib::Request &, httplib::Response &, const httplib::ContentReader *body) const;

    // Gives the request of any other page its session, a new one if it has none. False if that is not
    // possible, and then this was the answer.
    bool gives_session(const httplib::Request &, httplib::Response &) const;

private:
    const selvage::node &node_;
    selvage::node_info info_;
    std::string path_;
};

}  // namespace example

#endif
