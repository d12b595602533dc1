// OpenAI's error object, and how other errors become one.
#pragma once

#include <chrono>
#include <string>

#include "config/result.h"
#include "net/http_types.h"
#include "net/openai_types.h"

namespace millrace::net {

// A field is wrong: 400 invalid_request_error with `param`.
ApiError bad_field(std::string param, std::string message, std::string code = "invalid_value");

// {"error":{"message":...,"type":...,"param":...,"code":...}}
std::string error_body(const ApiError& error);

// The whole HTTP answer, with Retry-After when the error has one.
HttpResponse error_response(const ApiError& error);

ApiError api_error_of(const HttpFailure& failure);

// What the engine or the text layer says. Refusals for want of room are 503, or 429 when
// `overload_as_429` is set (for proxies that eject a backend after 5xx answers).
ApiError api_error_of(const Error& error, std::chrono::seconds retry_after, bool overload_as_429);

}  // namespace millrace::net
