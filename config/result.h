// Errors of the outside world (client, network, file, configuration) as values.
#pragma once

#include <boost/system/result.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace millrace {

enum class ErrorCode {
  kInvalidArgument,    // the caller's input is wrong; `field` names it
  kNotFound,           // a file, tensor, model or route that does not exist
  kUnsupported,        // well formed, but outside what this build serves
  kResourceExhausted,  // a named limit was reached; trying later may help
  kUnavailable,        // loading, draining, or no healthy cell
  kDeadlineExceeded,
  kInternal,
};

// `field` is the path of the offending field, tensor or file ("grid.stages", "model.layers.3...",
// "messages[2].role"), empty when there is none. `message` is a sentence for people and says the
// fix.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string field;
  std::string message;

  std::string to_string() const { return field.empty() ? message : field + ": " + message; }
};

template <class T>
using Result = boost::system::result<T, Error>;

inline Error invalid(std::string field, std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(field), std::move(message)};
}

// Called by boost::system::result::value() on an error: taking a value unchecked is our bug.
[[noreturn]] inline void throw_exception_from_error(const Error& e, const boost::source_location&) {
  throw std::runtime_error(e.to_string());
}

}  // namespace millrace
