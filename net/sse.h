// Server-sent events (WHATWG HTML, "Server-sent events"): the framing of streamed answers.
#pragma once

#include <string>
#include <string_view>

namespace millrace::net {

// One event with one data field: "data: <payload>\n\n". Newlines inside the payload (any of \n, \r,
// \r\n) start a further data line, as the format asks; JSON payloads have none.
std::string sse_data(std::string_view payload);

// A line that clients ignore; keeps proxies from closing a silent stream.
std::string sse_comment(std::string_view text);

inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

}  // namespace millrace::net
