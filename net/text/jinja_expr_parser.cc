#include "net/text/jinja_expr_parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "net/text/jinja_filters.h"

namespace millrace::text::jinja {

const Token& ExpressionParser::peek(std::size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

Token ExpressionParser::take() {
  const Token token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::is_op(std::string_view op, std::size_t ahead) const {
  return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == op;
}

bool ExpressionParser::is_word(std::string_view word, std::size_t ahead) const {
  return peek(ahead).kind == TokenKind::kName && peek(ahead).text == word;
}

bool ExpressionParser::skip_op(std::string_view op) { return is_op(op) && (take(), true); }

bool ExpressionParser::skip_word(std::string_view word) { return is_word(word) && (take(), true); }

void ExpressionParser::syntax_error(const std::string& expected) const {
  const Token& token = peek();
  const bool end = token.kind == TokenKind::kEnd;
  const bool tag_end = token.kind == TokenKind::kBlockEnd || token.kind == TokenKind::kPrintEnd;
  throw Failure{ErrorCode::kInvalidArgument,
                fmt::format("expected {}, found {}", expected,
                            end       ? "the end of the template"
                            : tag_end ? "the end of the tag"
                                      : fmt::format("'{}'", token.text)),
                token.line};
}

void ExpressionParser::expect_op(std::string_view op) {
  if (!skip_op(op)) syntax_error(fmt::format("'{}'", op));
}

void ExpressionParser::expect_word(std::string_view word) {
  if (!skip_word(word)) syntax_error(fmt::format("'{}'", word));
}

void ExpressionParser::expect_block_end() {
  if (peek().kind != TokenKind::kBlockEnd) syntax_error("the end of the tag");
  take();
}

std::string ExpressionParser::expect_name() {
  if (peek().kind != TokenKind::kName) syntax_error("a name");
  return take().text;
}

NameId ExpressionParser::intern(const std::string& name) {
  const auto [it, added] =
      template_->name_ids.emplace(name, static_cast<NameId>(template_->names.size()));
  if (added) template_->names.push_back(name);
  return it->second;
}

NameId ExpressionParser::expect_target() {
  const std::string name = expect_name();
  static const std::set<std::string> kReserved = {"true", "false", "True", "False", "none",
                                                  "None", "loop",  "not",  "and",   "or",
                                                  "in",   "is",    "if",   "else"};
  if (kReserved.count(name)) syntax_error(fmt::format("a name other than '{}'", name));
  const NameId id = intern(name);
  assigned_.insert(id);
  return id;
}

ExprPtr ExpressionParser::node(Kind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = peek().line;
  return expr;
}

void ExpressionParser::deepen(Expr& expr, const Expr& child) {
  expr.depth = std::max(expr.depth, child.depth + 1);
  if (expr.depth > kMaxExprDepth) {
    throw Failure{ErrorCode::kResourceExhausted, "an expression is too long", expr.line};
  }
}

void ExpressionParser::push(Expr& expr, ExprPtr child) {
  if (child) deepen(expr, *child);
  expr.args.push_back(std::move(child));
}

ExprPtr ExpressionParser::node(Kind kind, ExprPtr first) const {
  ExprPtr expr = node(kind);
  push(*expr, std::move(first));
  return expr;
}

ExprPtr ExpressionParser::node(Kind kind, ExprPtr first, ExprPtr second) const {
  ExprPtr expr = node(kind, std::move(first));
  push(*expr, std::move(second));
  return expr;
}

ExprPtr ExpressionParser::tuple(bool conditional) {
  const auto one = [&] { return conditional ? expression() : disjunction(); };
  ExprPtr first = one();
  if (!is_op(",")) return first;
  ExprPtr out = node(Kind::kTuple, std::move(first));
  while (skip_op(",")) {
    const bool end =
        peek().kind == TokenKind::kBlockEnd || peek().kind == TokenKind::kPrintEnd || is_op(")");
    if (end) break;
    push(*out, one());
  }
  return out;
}

ExprPtr ExpressionParser::expression() {
  const Nest nest(*this);
  ExprPtr expr = disjunction();
  while (is_word("if")) {
    ExprPtr conditional = node(Kind::kConditional);
    take();
    push(*conditional, disjunction());
    push(*conditional, std::move(expr));
    push(*conditional, skip_word("else") ? expression() : nullptr);
    expr = std::move(conditional);
  }
  return expr;
}

ExprPtr ExpressionParser::disjunction() {
  const Nest nest(*this);
  ExprPtr left = conjunction();
  while (skip_word("or")) left = node(Kind::kOr, std::move(left), conjunction());
  return left;
}

ExprPtr ExpressionParser::conjunction() {
  ExprPtr left = negation();
  while (skip_word("and")) left = node(Kind::kAnd, std::move(left), negation());
  return left;
}

ExprPtr ExpressionParser::negation() {
  if (!is_word("not")) return comparison();
  const Nest nest(*this);
  ExprPtr expr = node(Kind::kNot);
  take();
  push(*expr, negation());
  return expr;
}

bool ExpressionParser::comparison_operator(CompareOp* op) {
  static constexpr std::pair<std::string_view, CompareOp> kOperators[] = {
      {"==", CompareOp::kEq}, {"!=", CompareOp::kNe}, {"<", CompareOp::kLt},
      {"<=", CompareOp::kLe}, {">", CompareOp::kGt},  {">=", CompareOp::kGe}};
  for (const auto& [text, value] : kOperators) {
    if (skip_op(text)) return *op = value, true;
  }
  if (skip_word("in")) return *op = CompareOp::kIn, true;
  if (is_word("not") && is_word("in", 1)) {
    take();
    take();
    return *op = CompareOp::kNotIn, true;
  }
  return false;
}

ExprPtr ExpressionParser::comparison() {
  ExprPtr expr = sum();
  CompareOp op;
  if (!comparison_operator(&op)) return expr;
  expr = node(Kind::kCompare, std::move(expr));
  do {
    expr->compares.push_back(op);
    push(*expr, sum());
  } while (comparison_operator(&op));
  return expr;
}

ExprPtr ExpressionParser::binary_node(BinaryOp op, ExprPtr left, ExprPtr right) const {
  ExprPtr expr = node(Kind::kBinary, std::move(left), std::move(right));
  expr->binary = op;
  return expr;
}

ExprPtr ExpressionParser::sum() {
  ExprPtr left = concatenation();
  while (is_op("+") || is_op("-")) {
    const BinaryOp op = take().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
    left = binary_node(op, std::move(left), concatenation());
  }
  return left;
}

ExprPtr ExpressionParser::concatenation() {
  ExprPtr first = product();
  if (!is_op("~")) return first;
  ExprPtr expr = node(Kind::kConcat, std::move(first));
  while (skip_op("~")) push(*expr, product());
  return expr;
}

ExprPtr ExpressionParser::product() {
  ExprPtr left = power();
  for (;;) {
    BinaryOp op;
    if (is_op("*"))
      op = BinaryOp::kMul;
    else if (is_op("/"))
      op = BinaryOp::kDiv;
    else if (is_op("//"))
      op = BinaryOp::kFloorDiv;
    else if (is_op("%"))
      op = BinaryOp::kMod;
    else
      return left;
    take();
    left = binary_node(op, std::move(left), power());
  }
}

ExprPtr ExpressionParser::power() {
  ExprPtr left = unary(true);
  while (skip_op("**")) left = binary_node(BinaryOp::kPow, std::move(left), unary(true));
  return left;
}

ExprPtr ExpressionParser::unary(bool with_filter) {
  const Nest nest(*this);
  ExprPtr expr;
  if (is_op("-") || is_op("+")) {
    expr = node(is_op("-") ? Kind::kNegative : Kind::kPositive);
    take();
    push(*expr, unary(false));
  } else {
    expr = primary();
  }
  expr = postfix(std::move(expr));
  if (with_filter) expr = filters_and_tests(std::move(expr));
  return expr;
}

ExprPtr ExpressionParser::constant(Value value) {
  ExprPtr expr = node(Kind::kConstant);
  expr->value = std::move(value);
  return expr;
}

ExprPtr ExpressionParser::primary() {
  const Token token = peek();
  if (token.kind == TokenKind::kName) return name_or_constant();
  if (token.kind == TokenKind::kNumber) return constant(take().number);
  if (token.kind == TokenKind::kString) {
    std::string text;
    while (peek().kind == TokenKind::kString) text += take().text;
    return constant(Value::string(std::move(text)));
  }
  if (skip_op("(")) {
    ExprPtr expr = is_op(")") ? node(Kind::kTuple) : tuple();
    expect_op(")");
    return expr;
  }
  if (is_op("[")) return list_literal();
  if (is_op("{")) return dict_literal();
  syntax_error("an expression");
}

ExprPtr ExpressionParser::name_or_constant() {
  const std::string& text = peek().text;
  static const std::set<std::string> kKeywords = {"and", "or", "not", "if", "else", "in", "is"};
  if (kKeywords.count(text)) syntax_error("an expression");
  if (text == "true" || text == "True") return take(), constant(Value::boolean(true));
  if (text == "false" || text == "False") return take(), constant(Value::boolean(false));
  if (text == "none" || text == "None") return take(), constant(Value::none());
  ExprPtr expr = node(Kind::kName);
  expr->text = take().text;
  expr->name = intern(expr->text);
  return expr;
}

ExprPtr ExpressionParser::list_literal() {
  ExprPtr expr = node(Kind::kList);
  expect_op("[");
  while (!skip_op("]")) {
    if (!expr->args.empty()) expect_op(",");
    if (skip_op("]")) break;
    push(*expr, expression());
  }
  return expr;
}

ExprPtr ExpressionParser::dict_literal() {
  ExprPtr expr = node(Kind::kDict);
  expect_op("{");
  while (!skip_op("}")) {
    if (!expr->args.empty()) expect_op(",");
    if (skip_op("}")) break;
    push(*expr, expression());
    expect_op(":");
    push(*expr, expression());
  }
  return expr;
}

ExprPtr ExpressionParser::postfix(ExprPtr expr) {
  for (;;) {
    if (is_op(".")) {
      expr = attribute(std::move(expr));
    } else if (is_op("[")) {
      expr = subscript(std::move(expr));
    } else if (is_op("(")) {
      expr = call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::attribute(ExprPtr object) {
  ExprPtr expr = node(Kind::kAttribute, std::move(object));
  expect_op(".");
  if (peek().kind == TokenKind::kNumber) {  // list.0
    expr->kind = Kind::kItem;
    push(*expr, constant(take().number));
    return expr;
  }
  expr->text = expect_name();
  if (expr->text.starts_with("__")) {
    fail_unsupported(fmt::format("the attribute '{}'", expr->text), expr->line);
  }
  return expr;
}

ExprPtr ExpressionParser::subscript(ExprPtr object) {
  ExprPtr expr = node(Kind::kItem, std::move(object));
  expect_op("[");
  ExprPtr parts[3];
  int colons = 0;
  if (!is_op(":")) parts[0] = expression();
  while (colons < 2 && skip_op(":")) {
    ++colons;
    if (!is_op(":") && !is_op("]")) parts[colons] = expression();
  }
  if (is_op(",")) fail_unsupported("a tuple as subscript", expr->line);
  expect_op("]");
  if (colons == 0) {
    push(*expr, std::move(parts[0]));
    return expr;
  }
  expr->kind = Kind::kSlice;
  for (ExprPtr& part : parts) push(*expr, std::move(part));
  return expr;
}

void ExpressionParser::arguments(Expr& expr) {
  expect_op("(");
  bool first = true;
  while (!skip_op(")")) {
    if (!first) expect_op(",");
    first = false;
    if (skip_op(")")) break;
    if (is_op("*") || is_op("**")) fail_unsupported("unpacking of arguments", peek().line);
    if (peek().kind == TokenKind::kName && is_op("=", 1)) {
      std::string name = take().text;
      take();
      ExprPtr value = expression();
      deepen(expr, *value);
      expr.kwargs.emplace_back(std::move(name), std::move(value));
      continue;
    }
    if (!expr.kwargs.empty()) syntax_error("a named argument");
    push(expr, expression());
  }
}

ExprPtr ExpressionParser::call(ExprPtr callee) {
  ExprPtr expr;
  if (callee->kind == Kind::kAttribute) {
    expr = node(Kind::kMethodCall, std::move(callee->args[0]));
    expr->text = callee->text;
    expr->method = find_method(expr->text);
    method_calls_.push_back(expr.get());
  } else if (callee->kind == Kind::kName) {
    expr = node(Kind::kCall, std::move(callee));
    calls_.push_back(expr.get());
  } else {
    fail_unsupported("a call of anything but a name or a method", peek().line);
  }
  arguments(*expr);
  if (expr->kind == Kind::kCall && expr->args[0]->text == "namespace") {
    for (const auto& [name, value] : expr->kwargs) check_attribute(name);
  }
  return expr;
}

ExprPtr ExpressionParser::filters_and_tests(ExprPtr expr) {
  for (;;) {
    if (skip_op("|")) {
      expr = node(Kind::kFilter, std::move(expr));
      expr->text = expect_name();
      expr->filter = find_filter(expr->text);
      if (!expr->filter) fail_unsupported(fmt::format("the filter '{}'", expr->text), expr->line);
      if (is_op("(")) arguments(*expr);
    } else if (is_word("is")) {
      expr = test(std::move(expr));
    } else if (is_op("(")) {
      fail_unsupported("a call of anything but a name or a method", peek().line);
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::test(ExprPtr subject) {
  expect_word("is");
  const bool negated = skip_word("not");
  ExprPtr expr = node(Kind::kTest, std::move(subject));
  expr->text = expect_name();
  expr->test = find_test(expr->text);
  if (!expr->test) fail_unsupported(fmt::format("the test '{}'", expr->text), expr->line);
  const TokenKind next = peek().kind;
  const bool word = next == TokenKind::kName && !is_word("else") && !is_word("or") &&
                    !is_word("and") && !is_word("if") && !is_word("in") && !is_word("not");
  if (is_word("is")) syntax_error("no second test behind a test");
  if (is_op("(")) {
    arguments(*expr);
    if (!expr->kwargs.empty()) fail_unsupported("a named argument of a test", expr->line);
  } else if (word || next == TokenKind::kString || next == TokenKind::kNumber || is_op("[") ||
             is_op("{")) {
    push(*expr, postfix(primary()));
  }
  if (expr->args.size() != expr->test->arguments + 1) {
    syntax_error(fmt::format("{} argument(s) of the test '{}'", expr->test->arguments, expr->text));
  }
  return negated ? node(Kind::kNot, std::move(expr)) : std::move(expr);
}

std::string ExpressionParser::check_attribute(std::string name) const {
  if (name.starts_with("_")) {
    fail_unsupported(fmt::format("the namespace attribute '{}'", name), peek().line);
  }
  return name;
}

}  // namespace millrace::text::jinja
