// Runs a parsed template.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "net/text/chat_template.h"
#include "net/text/jinja_ast.h"
#include "net/text/jinja_value.h"

namespace millrace::text::jinja {

struct RenderInput {
  std::vector<std::pair<std::string, Value>> variables;
  std::function<std::chrono::system_clock::time_point()> now;
};

// Throws Failure. Scopes are jinja2's: a loop round, a macro call, a set block and a generation
// block have variables of their own; `if` has not; macros see the variables of the template itself.
std::string run(const Template& tree, const RenderInput& input, const RenderLimits& limits);

}  // namespace millrace::text::jinja
