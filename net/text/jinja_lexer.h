// Splits a template into text and tags, with Jinja's rules for white space: trim_blocks and
// lstrip_blocks on, `-` and `+` signs, one line end dropped at the end of the template.
// Source: jinja2/lexer.py (3.1), Lexer.tokeniter.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "net/text/jinja_value.h"

namespace millrace::text::jinja {

enum class TokenKind {
  kText,
  kPrintBegin,  // {{
  kPrintEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,
  kNumber,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // of kText, kName, kOperator; the value of kString
  Value number;      // of kNumber
  int line = 0;
};

// Throws Failure. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace millrace::text::jinja
