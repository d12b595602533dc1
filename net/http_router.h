// Which handler answers a method and path. Filled before the server starts, read-only afterwards.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "net/http_types.h"

namespace millrace::net {

class HttpRouter {
 public:
  // `pattern` is an exact path, or ends in "/*", which matches one or more characters (slashes
  // too) and hands them on as HttpRequest::tail. Exact paths win over patterns.
  void add(std::string method, std::string pattern, HttpHandler handler);

  struct Match {
    const HttpHandler* handler = nullptr;  // null: unknown path, or path without that method
    std::string tail;
    std::vector<std::string> allowed;  // methods of the path; empty: the path is unknown
  };
  Match find(std::string_view method, std::string_view path) const;

 private:
  struct Route {
    std::string method;
    std::string path;  // without the "*"
    bool prefix = false;
    HttpHandler handler;
  };
  std::vector<Route> routes_;
};

// Splits a request target into a decoded path and its query. False for a bad percent escape, an
// embedded NUL, or a form other than origin ("/x?y") or absolute ("http://host/x?y").
bool parse_target(std::string_view target, HttpRequest& request);

// A caller's x-request-id is used when it has 1 to 128 characters of [A-Za-z0-9._:/+=@-].
bool sane_request_id(std::string_view id);
std::string new_request_id();

}  // namespace millrace::net
