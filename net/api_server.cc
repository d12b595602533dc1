#include "net/api_server.h"

#include <algorithm>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/string.hpp>
#include <exception>

#include "config/check.h"
#include "net/api_context.h"
#include "net/http_server.h"
#include "net/openai_error.h"

namespace millrace::net {
namespace asio = boost::asio;

namespace {

bool is_json(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && type.back() == ' ') type.remove_suffix(1);
  return type.empty() ||
         boost::beast::iequals({type.data(), type.size()}, std::string_view("application/json"));
}

// The status page is the same for everybody: it asks for a key when its data needs one.
bool open_to_all(const ApiContext& context, const std::string& path) {
  return path == "/health" || path.starts_with("/health/") || path == "/drain" || path == "/" ||
         path == "/status" || path.starts_with("/status/") ||
         (path == "/metrics" && !context.config.guard_metrics);
}

// Before the body is read: who asks, and in what form.
std::optional<HttpFailure> admit(const ApiContext& context, const HttpRequest& request) {
  if (!context.keys.empty() && !open_to_all(context, request.path) &&
      !context.keys.allows(request)) {
    return HttpFailure{401, "invalid_api_key",
                       "a valid API key is needed: Authorization: Bearer <key>, or x-api-key"};
  }
  if (request.method == "POST" && !is_json(request.header("content-type"))) {
    return HttpFailure{415, "unsupported_media_type", "the body must be application/json"};
  }
  return std::nullopt;
}

std::unique_ptr<ApiContext> make_context(ApiConfig config, const text::Tokenizer& tokenizer,
                                         const text::ChatTemplate* chat_template, Engine& engine,
                                         ApiObserver* observer, ApiServer::MetricsText metrics,
                                         ApiServer::StatusText status) {
  static ApiObserver silent;
  CHECK(!config.model_names.empty(), "no model name");
  if (config.limits.vocab_size == 0) config.limits.vocab_size = tokenizer.vocab_size();
  TextContext text;
  text.tokenizer = &tokenizer;
  text.chat_template = chat_template;
  if (config.neutralize_special_tokens) text.neutralize = tokenizer.special_tokens();
  text.eos_token_ids = config.eos_token_ids;
  text.max_piece_bytes = longest_piece(tokenizer);
  ParseContext parse;
  parse.limits = config.limits;
  parse.defaults = config.defaults;
  parse.content_parts = chat_template != nullptr && chat_template->accepts_content_parts();
  parse.renders_tools = chat_template != nullptr && chat_template->renders_tools();
  const std::uint32_t threads = std::max(config.prepare_threads, 1U);
  ApiKeys keys(config.api_keys);
  return std::unique_ptr<ApiContext>(new ApiContext{
      .config = std::move(config),
      .engine = engine,
      .observer = observer != nullptr ? observer : &silent,
      .metrics = std::move(metrics),
      .status = std::move(status),
      .text = std::move(text),
      .parse = std::move(parse),
      .keys = std::move(keys),
      .prepare_pool = asio::thread_pool(threads),
  });
}

HttpServerConfig http_config(ApiContext& context) {
  HttpServerConfig http = context.config.http;
  http.format_failure = [](const HttpFailure& failure) {
    return error_response(api_error_of(failure));
  };
  http.admit = [&context](const HttpRequest& request) { return admit(context, request); };
  http.on_failure = [&context](const HttpFailure& failure) {
    context.observer->rejected("", failure.status, failure.code);
  };
  return http;
}

}  // namespace

bool ApiContext::knows_model(const std::string& name) const {
  const auto& names = config.model_names;
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::uint32_t ApiContext::max_context() const {
  const std::uint32_t told = engine.status().max_context;
  const std::uint32_t limit = config.limits.max_context;
  if (told == 0 || limit == 0) return std::max(told, limit);
  return std::min(told, limit);
}

HttpResponse ApiContext::reject(std::string_view route, const ApiError& error) const {
  observer->rejected(route, error.status, error.code.value_or(error.type));
  return error_response(error);
}

asio::awaitable<void> offload(ApiContext& context, std::function<void()> work) {
  std::exception_ptr error;
  const auto pool = context.prepare_pool.get_executor();
  co_await asio::post(asio::bind_executor(pool, asio::use_awaitable));
  try {
    work();
  } catch (...) {
    error = std::current_exception();  // must not unwind the caller on the pool's thread
  }
  co_await asio::post(asio::use_awaitable);
  if (error) std::rethrow_exception(error);
}

ApiError model_not_found(const std::string& name) {
  ApiError error;
  error.status = 404;
  error.message = "the model \"" + name.substr(0, 256) +
                  "\" does not exist here; GET /v1/models lists what is served";
  error.type = "not_found_error";
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

ApiServer::ApiServer(asio::any_io_executor executor, ApiConfig config,
                     const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
                     Engine& engine, ApiObserver* observer, MetricsText metrics, StatusText status)
    : context_(make_context(std::move(config), tokenizer, chat_template, engine, observer,
                            std::move(metrics), std::move(status))) {
  HttpRouter router;
  ApiContext& context = *context_;
  router.add("POST", "/v1/completions", [&context](HttpRequest& request, Responder& responder) {
    return handle_generate(context, false, request, responder);
  });
  router.add("POST", "/v1/chat/completions",
             [&context](HttpRequest& request, Responder& responder) {
               return handle_generate(context, true, request, responder);
             });
  add_other_routes(context, router);
  if (context.config.more_routes) context.config.more_routes(router);
  if (context.status) add_status_routes(context, router);
  http_ = std::make_unique<HttpServer>(executor, http_config(context), std::move(router));
}

ApiServer::~ApiServer() { stop(); }

Result<std::uint16_t> ApiServer::start() { return http_->start(); }

std::uint16_t ApiServer::port() const { return http_->port(); }

void ApiServer::announce_drain() { context_->not_ready = true; }

void ApiServer::begin_drain() {
  context_->not_ready = context_->draining = true;
  http_->begin_drain();
}

asio::awaitable<bool> ApiServer::drained(std::chrono::milliseconds deadline) {
  return http_->drained(deadline);
}

void ApiServer::stop() {
  context_->not_ready = context_->draining = true;
  http_->stop();
}

}  // namespace millrace::net
