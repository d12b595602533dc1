// The tokens and expressions half of the template parser; statements are in jinja_parser.cc.
// Recursive descent with the grammar of jinja2/parser.py (3.1), less what is refused.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "net/text/jinja_ast.h"
#include "net/text/jinja_lexer.h"

namespace millrace::text::jinja {

// All members throw Failure on bad syntax or a construct outside the subset.
class ExpressionParser {
 protected:
  static constexpr int kMaxSyntaxDepth = 150;  // of nested blocks and parentheses
  static constexpr int kMaxExprDepth = 600;    // of one expression tree
  using Kind = Expr::Kind;

  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

  // --- tokens
  const Token& peek(std::size_t ahead = 0) const;
  Token take();
  bool is_op(std::string_view op, std::size_t ahead = 0) const;
  bool is_word(std::string_view word, std::size_t ahead = 0) const;
  bool skip_op(std::string_view op);
  bool skip_word(std::string_view word);
  [[noreturn]] void syntax_error(const std::string& expected) const;
  void expect_op(std::string_view op);
  void expect_word(std::string_view word);
  void expect_block_end();
  std::string expect_name();
  NameId intern(const std::string& name);
  NameId expect_target();
  // --- expressions, loosest binding first
  ExprPtr node(Kind kind) const;
  // The depth of every tree is bounded, also of chains like a + b + c, which nest to the left:
  // evaluating and freeing recurse.
  static void deepen(Expr& expr, const Expr& child);
  static void push(Expr& expr, ExprPtr child);
  ExprPtr node(Kind kind, ExprPtr first) const;
  ExprPtr node(Kind kind, ExprPtr first, ExprPtr second) const;
  // An expression, or a tuple of them when commas follow.
  ExprPtr tuple(bool conditional = true);
  ExprPtr expression();
  ExprPtr disjunction();
  ExprPtr conjunction();
  ExprPtr negation();
  bool comparison_operator(CompareOp* op);
  ExprPtr comparison();
  ExprPtr binary_node(BinaryOp op, ExprPtr left, ExprPtr right) const;
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter);
  ExprPtr constant(Value value);
  ExprPtr primary();
  ExprPtr name_or_constant();
  ExprPtr list_literal();
  ExprPtr dict_literal();
  ExprPtr postfix(ExprPtr expr);
  ExprPtr attribute(ExprPtr object);
  ExprPtr subscript(ExprPtr object);
  void arguments(Expr& expr);
  ExprPtr call(ExprPtr callee);
  ExprPtr filters_and_tests(ExprPtr expr);
  ExprPtr test(ExprPtr subject);

  // Bounds the recursion of the parser, and with it that of the interpreter.
  struct Nest {
    explicit Nest(ExpressionParser& owner) : parser(owner) {
      if (++parser.depth_ > kMaxSyntaxDepth) {
        throw Failure{ErrorCode::kResourceExhausted, "the template is nested too deeply",
                      parser.peek().line};
      }
    }
    ~Nest() { --parser.depth_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;
    ExpressionParser& parser;
  };

  // transformers' sandbox: no attribute of a namespace begins with an underscore.
  std::string check_attribute(std::string name) const;

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::set<NameId> assigned_;
  std::vector<const Expr*> calls_, method_calls_;  // checked when all names are known
  std::shared_ptr<Template> template_ = std::make_shared<Template>();
};

}  // namespace millrace::text::jinja
