// Statements of the template language; expressions are in jinja_expr_parser.cc.
#include <fmt/format.h>

#include <set>
#include <utility>

#include "net/text/jinja_ast.h"
#include "net/text/jinja_expr_parser.h"

namespace millrace::text::jinja {
namespace {

class Parser : ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  std::shared_ptr<const Template> run() {
    template_->loop_name = intern("loop");
    template_->body = block({});
    check_calls();
    return template_;
  }

 private:
  // --- statements

  // Statements up to one of `ends`, whose tag is left open behind its name.
  Block block(const std::vector<std::string_view>& ends) {
    const Nest nest(*this);
    Block body;
    for (;;) {
      const Token token = peek();
      if (token.kind == TokenKind::kEnd) {
        if (ends.empty()) return body;
        syntax_error(fmt::format("'{}'", ends.back()));
      } else if (token.kind == TokenKind::kText) {
        auto stmt = make(Stmt::Kind::kText);
        stmt->text = take().text;
        body.push_back(std::move(stmt));
      } else if (token.kind == TokenKind::kPrintBegin) {
        auto stmt = make(Stmt::Kind::kPrint);
        take();
        stmt->expr = tuple();
        if (peek().kind != TokenKind::kPrintEnd) syntax_error("the end of the tag");
        take();
        body.push_back(std::move(stmt));
      } else {
        take();  // kBlockBegin
        for (const std::string_view end : ends) {
          if (is_word(end)) return body;
        }
        body.push_back(statement());
      }
    }
  }

  std::unique_ptr<Stmt> make(Stmt::Kind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = peek().line;
    return stmt;
  }

  StmtPtr statement() {
    if (peek().kind != TokenKind::kName) syntax_error("a statement");
    if (is_word("if")) return if_statement();
    if (is_word("for")) return for_statement();
    if (is_word("set")) return set_statement();
    if (is_word("macro")) return macro_statement();
    if (is_word("generation")) return generation_statement();
    if (is_word("break") || is_word("continue")) {
      auto stmt = make(is_word("break") ? Stmt::Kind::kBreak : Stmt::Kind::kContinue);
      if (loops_ == 0) syntax_error("a statement that may stand outside a loop");
      take();
      expect_block_end();
      return stmt;
    }
    static const std::set<std::string> kKnownEnds = {"endif",  "else",     "elif",         "endfor",
                                                     "endset", "endmacro", "endgeneration"};
    if (kKnownEnds.count(peek().text)) syntax_error("a statement");
    fail_unsupported(fmt::format("the statement '{}'", peek().text), peek().line);
  }

  StmtPtr if_statement() {
    auto stmt = make(Stmt::Kind::kIf);
    take();
    ExprPtr condition = tuple(false);
    expect_block_end();
    for (;;) {
      Block body = block({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(condition), std::move(body));
      const std::string end = take().text;
      if (end == "endif") break;
      if (end == "elif") {
        condition = tuple(false);
        expect_block_end();
        continue;
      }
      expect_block_end();
      stmt->branches.emplace_back(nullptr, block({"endif"}));
      take();
      break;
    }
    expect_block_end();
    return stmt;
  }

  StmtPtr for_statement() {
    auto stmt = make(Stmt::Kind::kFor);
    take();
    const bool parentheses = skip_op("(");
    do {
      if (is_word("in")) break;  // a comma at the end
      stmt->targets.push_back(expect_target());
    } while (skip_op(","));
    if (parentheses) expect_op(")");
    expect_word("in");
    stmt->expr = tuple(false);
    if (skip_word("if")) stmt->condition = expression();
    if (is_word("recursive")) fail_unsupported("a recursive loop", peek().line);
    expect_block_end();
    ++loops_;
    ++inner_;
    stmt->body = block({"else", "endfor"});
    --inner_;
    --loops_;
    if (take().text == "else") {
      expect_block_end();
      ++inner_;
      stmt->otherwise = block({"endfor"});
      --inner_;
      take();
    }
    expect_block_end();
    return stmt;
  }

  StmtPtr set_statement() {
    auto stmt = make(Stmt::Kind::kSet);
    take();
    stmt->targets.push_back(expect_target());
    if (skip_op(".")) {
      // An assignment to an attribute reads the name, it does not make it.
      stmt->attribute = check_attribute(expect_name());
    } else {
      while (skip_op(",")) stmt->targets.push_back(expect_target());
    }
    if (skip_op("=")) {
      stmt->expr = tuple();
      expect_block_end();
      return stmt;
    }
    if (is_op("|")) fail_unsupported("a filter on a set block", peek().line);
    expect_block_end();
    ++inner_;
    stmt->body = block({"endset"});
    --inner_;
    take();
    expect_block_end();
    return stmt;
  }

  StmtPtr macro_statement() {
    auto stmt = make(Stmt::Kind::kMacro);
    if (inner_ > 0) fail_unsupported("a macro inside a loop, macro or block", peek().line);
    take();
    auto macro = std::make_unique<MacroNode>();
    macro->line = stmt->line;
    macro->name = expect_target();
    expect_op("(");
    while (!skip_op(")")) {
      if (!macro->parameters.empty()) expect_op(",");
      macro->parameters.push_back(expect_target());
      if (skip_op("=")) {
        macro->defaults.push_back(expression());
      } else if (!macro->defaults.empty()) {
        syntax_error("a default for this parameter");
      }
    }
    expect_block_end();
    ++inner_;
    macro->body = block({"endmacro"});
    --inner_;
    take();
    expect_block_end();
    stmt->macro = std::move(macro);
    return stmt;
  }

  StmtPtr generation_statement() {
    auto stmt = make(Stmt::Kind::kGeneration);
    take();
    expect_block_end();
    ++inner_;
    const int loops = std::exchange(loops_, 0);  // its body is a function of its own in jinja2
    stmt->body = block({"endgeneration"});
    loops_ = loops;
    --inner_;
    take();
    expect_block_end();
    return stmt;
  }

  // --- what can only be known at the end

  void check_calls() const {
    static const std::set<std::string> kBuiltins = {"namespace", "range", "dict", "raise_exception",
                                                    "strftime_now"};
    for (const Expr* call : calls_) {
      const Expr& callee = *call->args[0];
      if (!kBuiltins.count(callee.text) && !assigned_.count(callee.name)) {
        fail_unsupported(fmt::format("the function '{}'", callee.text), call->line);
      }
    }
    for (const Expr* call : method_calls_) {
      const bool on_namespace =
          call->args[0]->kind == Kind::kName && assigned_.count(call->args[0]->name);
      const bool on_loop = call->args[0]->kind == Kind::kName && call->args[0]->text == "loop" &&
                           call->text == "cycle";
      if (!call->method && !on_namespace && !on_loop) {
        fail_unsupported(fmt::format("the method '{}'", call->text), call->line);
      }
    }
  }

  int loops_ = 0;  // loops around the current statement that break and continue can mean
  int inner_ = 0;  // scopes around the current statement
};

}  // namespace

std::shared_ptr<const Template> parse(std::string_view source) { return Parser(source).run(); }

}  // namespace millrace::text::jinja
