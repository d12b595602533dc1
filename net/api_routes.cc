// The routes beside generation: models, tokens, health, version, metrics.
#include <fmt/format.h>

#include "net/api_context.h"
#include "net/api_metrics.h"
#include "net/openai_error.h"
#include "net/openai_json.h"

namespace millrace::net {
namespace asio = boost::asio;

namespace {

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpResponse json_response(const Json& value, unsigned status = 200) {
  HttpResponse response;
  response.status = status;
  response.body = to_text(value);
  return response;
}

using Answer = std::function<HttpResponse(ApiContext&, const HttpRequest&)>;

HttpHandler answer_with(ApiContext& context, Answer answer) {
  return [&context, answer = std::move(answer)](HttpRequest& request,
                                                Responder& responder) -> asio::awaitable<void> {
    HttpResponse response = answer(context, request);
    co_await responder.send(std::move(response));
  };
}

// The same away from the io thread when the body is large.
HttpHandler answer_offloaded(ApiContext& context, Answer answer) {
  return [&context, answer = std::move(answer)](HttpRequest& request,
                                                Responder& responder) -> asio::awaitable<void> {
    HttpResponse response;
    if (request.body.size() < context.config.offload_body_bytes) {
      response = answer(context, request);
    } else {
      co_await offload(context, [&] { response = answer(context, request); });
    }
    co_await responder.send(std::move(response));
  };
}

Json model_json(const ApiContext& context, const std::string& name) {
  Json model;
  model["id"] = name;
  model["object"] = "model";
  model["created"] = context.created;
  model["owned_by"] = context.config.owned_by;
  model["root"] = context.config.model_names.front();
  model["parent"] = nullptr;
  const std::uint32_t length = context.max_context();
  model["max_model_len"] = length == 0 ? Json(nullptr) : Json(length);
  model["vocab_size"] = context.config.limits.vocab_size;
  return model;
}

HttpResponse list_models(ApiContext& context, const HttpRequest&) {
  Json list;
  list["object"] = "list";
  list["data"] = Json::array();
  for (const std::string& name : context.config.model_names) {
    list["data"].push_back(model_json(context, name));
  }
  return json_response(list);
}

HttpResponse show_model(ApiContext& context, const HttpRequest& request) {
  if (context.knows_model(request.tail)) return json_response(model_json(context, request.tail));
  return context.reject("/v1/models", model_not_found(request.tail));
}

HttpResponse live(ApiContext&, const HttpRequest&) {
  Json body;
  body["status"] = "live";
  return json_response(body);
}

HttpResponse ready(ApiContext& context, const HttpRequest&) {
  const EngineStatus status = context.engine.status();
  const bool ok = status.ready && !context.not_ready;
  Json body;
  body["status"] = ok ? "ready" : "not_ready";
  body["reason"] = ok ? "" : context.not_ready ? "draining" : status.reason;
  body["queued"] = status.queued;
  body["running"] = status.running;
  return json_response(body, ok ? 200 : 503);
}

HttpResponse version(ApiContext& context, const HttpRequest&) {
  Json body;
  body["version"] = context.config.version;
  return json_response(body);
}

HttpResponse metrics(ApiContext& context, const HttpRequest& request) {
  std::vector<std::string> names;
  for (const auto& [key, value] : request.query) {
    if (key == "name[]") names.push_back(value);
  }
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = filter_metrics(context.metrics(), names);
  return response;
}

std::optional<ApiError> check_model(const ApiContext& context,
                                    const std::optional<std::string>& model) {
  if (!model || context.knows_model(*model)) return std::nullopt;
  return model_not_found(*model);
}

ApiResult<Json> tokenize(ApiContext& context, const std::string& body) {
  auto json = parse_json_object(body);
  if (json.has_error()) return json.error();
  auto request = parse_tokenize(*json, context.parse);
  if (request.has_error()) return request.error();
  if (auto error = check_model(context, request->model)) return *error;
  // Counting tokens of a text that is too long for the model is a fair question: no limit here.
  const auto* text = std::get_if<std::string>(&request->input);
  auto ids = text != nullptr
                 ? encode_text(*text, request->add_special_tokens, context.text, 0, "prompt")
                 : encode_chat(std::get<ChatPrompt>(request->input), context.text, 0);
  if (ids.has_error()) return ids.error();
  Json out;
  out["count"] = ids->size();
  out["max_model_len"] = context.max_context();
  out["tokens"] = *ids;
  out["token_strs"] = nullptr;
  if (request->return_token_strings) {
    Json strings = Json::array();
    for (const std::int32_t id : *ids) strings.push_back(context.text.tokenizer->id_to_token(id));
    out["token_strs"] = std::move(strings);
  }
  return ApiResult<Json>(boost::system::in_place_value, std::move(out));
}

ApiResult<Json> detokenize(ApiContext& context, const std::string& body) {
  auto json = parse_json_object(body);
  if (json.has_error()) return json.error();
  auto request = parse_detokenize(*json, context.parse);
  if (request.has_error()) return request.error();
  if (auto error = check_model(context, request->model)) return *error;
  Json out;
  out["prompt"] = context.text.tokenizer->decode(request->tokens, false);
  return ApiResult<Json>(boost::system::in_place_value, std::move(out));
}

Answer answer_json(std::string route, ApiResult<Json> (*work)(ApiContext&, const std::string&)) {
  return [route = std::move(route), work](ApiContext& context, const HttpRequest& request) {
    auto result = work(context, request.body);
    if (result.has_error()) return context.reject(route, result.error());
    return json_response(*result);
  };
}

}  // namespace

void add_other_routes(ApiContext& context, HttpRouter& router) {
  router.add("GET", "/v1/models", answer_with(context, list_models));
  router.add("GET", "/v1/models/*", answer_with(context, show_model));
  router.add("GET", "/health", answer_with(context, ready));
  router.add("GET", "/health/live", answer_with(context, live));
  router.add("GET", "/health/ready", answer_with(context, ready));
  router.add("GET", "/version", answer_with(context, version));
  if (context.metrics) router.add("GET", "/metrics", answer_with(context, metrics));
  router.add("POST", "/tokenize", answer_offloaded(context, answer_json("/tokenize", tokenize)));
  router.add("POST", "/detokenize",
             answer_offloaded(context, answer_json("/detokenize", detokenize)));
}

}  // namespace millrace::net
