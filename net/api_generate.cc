// POST /v1/completions and /v1/chat/completions: parse, prepare, generate.
#include "net/api_context.h"
#include "net/api_generation.h"
#include "net/openai_error.h"
#include "net/openai_json.h"

namespace millrace::net {
namespace asio = boost::asio;

namespace {

template <class Request>
ApiResult<PreparedRequest> prepare_parsed(const ApiContext& context, ApiResult<Request> request,
                                          std::uint32_t max_context) {
  if (request.has_error()) return request.error();
  if (!context.knows_model(request->params.model)) {
    return model_not_found(request->params.model);
  }
  return prepare(std::move(*request), context.text, context.parse.defaults, max_context);
}

ApiResult<PreparedRequest> prepare_body(const ApiContext& context, bool chat,
                                        const std::string& body, std::uint32_t max_context) {
  auto json = parse_json_object(body);
  if (json.has_error()) return json.error();
  return chat ? prepare_parsed(context, parse_chat(*json, context.parse), max_context)
              : prepare_parsed(context, parse_completion(*json, context.parse), max_context);
}

std::optional<ApiError> refuse_while_draining(const ApiContext& context) {
  if (!context.draining) return std::nullopt;
  Error error{ErrorCode::kUnavailable, "", "the server is shutting down; retry elsewhere"};
  return api_error_of(error, context.engine.retry_after(), false);
}

}  // namespace

asio::awaitable<void> handle_generate(ApiContext& context, bool chat, HttpRequest& request,
                                      Responder& responder) {
  const std::string_view route = chat ? "/v1/chat/completions" : "/v1/completions";
  if (auto error = refuse_while_draining(context)) {
    HttpResponse refusal = context.reject(route, *error);
    co_await responder.send(std::move(refusal));
    co_return;
  }
  const std::uint32_t max_context = context.max_context();
  std::optional<ApiResult<PreparedRequest>> prepared;
  const auto work = [&] { prepared = prepare_body(context, chat, request.body, max_context); };
  if (request.body.size() < context.config.offload_body_bytes) {
    work();
  } else {
    // Parsing and tokenizing a large body takes long enough to stall every stream.
    co_await offload(context, work);
  }
  request.body = std::string();  // a long answer must not hold it
  if (prepared->has_error()) {
    HttpResponse refusal = context.reject(route, prepared->error());
    co_await responder.send(std::move(refusal));
    co_return;
  }
  Generation generation(context, **prepared, request, responder);
  co_await generation.run();
}

}  // namespace millrace::net
