#include "net/openai_error.h"

namespace millrace::net {
namespace {

Json nullable(const std::optional<std::string>& text) { return text ? Json(*text) : Json(nullptr); }

std::string type_of_status(unsigned status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status >= 500 && status != 505 ? "server_error" : "invalid_request_error";
  }
}

ApiError plain(unsigned status, const Error& error, std::string code) {
  ApiError out;
  out.status = status;
  out.message = error.message;
  out.type = type_of_status(status);
  if (!error.field.empty()) out.param = error.field;
  out.code = std::move(code);
  return out;
}

}  // namespace

ApiError bad_field(std::string param, std::string message, std::string code) {
  ApiError error;
  error.message = std::move(message);
  error.param = std::move(param);
  error.code = std::move(code);
  return error;
}

std::string error_body(const ApiError& error) {
  Json fields;
  fields["message"] = error.message;
  fields["type"] = error.type;
  fields["param"] = nullable(error.param);
  fields["code"] = nullable(error.code);
  Json body;
  body["error"] = std::move(fields);
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  response.body = error_body(error);
  if (error.retry_after) {
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after->count()));
  }
  return response;
}

ApiError api_error_of(const HttpFailure& failure) {
  ApiError error;
  error.status = failure.status;
  error.message = failure.message;
  error.type = type_of_status(failure.status);
  error.code = failure.code;
  return error;
}

ApiError api_error_of(const Error& error, std::chrono::seconds retry_after, bool overload_as_429) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
      return plain(400, error, "invalid_value");
    case ErrorCode::kNotFound:
      return plain(404, error, "not_found");
    case ErrorCode::kResourceExhausted: {
      ApiError out = plain(overload_as_429 ? 429 : 503, error, "server_is_overloaded");
      out.retry_after = retry_after;
      return out;
    }
    case ErrorCode::kUnavailable: {
      ApiError out = plain(503, error, "service_unavailable");
      out.retry_after = retry_after;
      return out;
    }
    case ErrorCode::kDeadlineExceeded:
      return plain(504, error, "timeout");
    case ErrorCode::kInternal:
      break;
  }
  return plain(500, error, "internal_error");
}

}  // namespace millrace::net
