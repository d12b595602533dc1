// The status page: its files, which are compiled in, and the JSON that it shows.
#include "net/api_context.h"
#include "net/status_files.h"

namespace millrace::net {
namespace asio = boost::asio;

namespace {

// Scripts, styles and data from this server alone: nothing written into the page, nothing from
// elsewhere, and no other site may show it in a frame.
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

// `cached`: browsers may keep it, but ask each time whether it is still the same, so that a new
// binary never meets an old script.
HttpHeaders page_headers(bool cached) {
  return {{"Content-Security-Policy", kPolicy},
          {"X-Content-Type-Options", "nosniff"},
          {"Referrer-Policy", "no-referrer"},
          {"Cross-Origin-Resource-Policy", "same-origin"},
          {"Cache-Control", cached ? "no-cache" : "no-store"}};
}

// Whether If-None-Match names the file: a list of tags, perhaps weak, or "*".
bool has_it(std::string_view wanted, std::string_view etag) {
  return wanted == "*" || wanted.find(etag) != std::string_view::npos;
}

HttpResponse file_response(const StatusFile& file, const HttpRequest& request) {
  HttpResponse response;
  response.headers = page_headers(true);
  response.headers.emplace_back("ETag", file.etag);
  if (has_it(request.header("if-none-match"), file.etag)) {
    response.status = 304;
    response.content_type.clear();
    return response;
  }
  response.content_type = file.content_type;
  response.body = file.body;
  return response;
}

HttpResponse data_response(const ApiContext& context) {
  HttpResponse response;
  response.headers = page_headers(false);
  response.body = *context.status();
  return response;
}

// Relative, so that a prefix which a proxy puts in front stays.
HttpResponse redirect_to(const char* location) {
  HttpResponse response;
  response.status = 307;
  response.content_type = "text/plain; charset=utf-8";
  response.headers = page_headers(false);
  response.headers.emplace_back("Location", location);
  response.body = "The status page is at /status.\n";
  return response;
}

}  // namespace

void add_status_routes(ApiContext& context, HttpRouter& router) {
  // People who type the address alone, or a slash too much.
  for (const auto& [path, page] : {std::pair("/", "status"), {"/status/", "../status"}}) {
    router.add("GET", path,
               [location = page](HttpRequest&, Responder& responder) -> asio::awaitable<void> {
                 HttpResponse response = redirect_to(location);
                 co_await responder.send(std::move(response));
               });
  }
  router.add("GET", "/status.json",
             [&context](HttpRequest&, Responder& responder) -> asio::awaitable<void> {
               HttpResponse response = data_response(context);
               co_await responder.send(std::move(response));
             });
  for (const StatusFile& file : status_files()) {
    const std::string name(file.name);
    router.add("GET", name == "index.html" ? "/status" : "/status/" + name,
               [&file](HttpRequest& request, Responder& responder) -> asio::awaitable<void> {
                 HttpResponse response = file_response(file, request);
                 co_await responder.send(std::move(response));
               });
  }
}

}  // namespace millrace::net
