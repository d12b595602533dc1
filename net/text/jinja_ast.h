// Syntax tree of a template. Built once by the parser, then read by any number of renderings.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "net/text/jinja_value.h"

namespace millrace::text::jinja {

using NameId = int;  // index into Template::names

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class BinaryOp { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct FilterEntry;  // jinja_filters.h
struct TestEntry;
struct MethodEntry;

struct Expr {
  enum class Kind {
    kConstant,    // value
    kName,        // name
    kList,        // args
    kTuple,       // args
    kDict,        // args: key, value, key, value, ...
    kAttribute,   // args[0].text
    kItem,        // args[0][args[1]]
    kSlice,       // args[0][args[1]:args[2]:args[3]], missing ones null
    kCall,        // args[0](args[1..], kwargs)
    kMethodCall,  // args[0].text(args[1..], kwargs)
    kFilter,      // args[0] | text(args[1..], kwargs)
    kTest,        // args[0] is text(args[1..])
    kNot,         // args[0]
    kNegative,    // args[0]
    kPositive,    // args[0]
    kAnd,
    kOr,           // args[0], args[1]
    kBinary,       // args[0] binary args[1]
    kConcat,       // args joined by ~
    kCompare,      // args[0] compares[0] args[1] compares[1] args[2] ...
    kConditional,  // args[1] if args[0] else args[2], which may be null
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // of the tree below
  Value value;
  NameId name = -1;
  std::string text;
  BinaryOp binary = BinaryOp::kAdd;
  std::vector<CompareOp> compares;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> kwargs;
  const FilterEntry* filter = nullptr;
  const TestEntry* test = nullptr;
  const MethodEntry* method = nullptr;  // null: only a macro in a namespace can be meant
};

struct Stmt;
using StmtPtr = std::unique_ptr<Stmt>;
using Block = std::vector<StmtPtr>;

struct Stmt {
  enum class Kind {
    kText,        // text
    kPrint,       // expr
    kIf,          // branches in order; expr null is `else`
    kFor,         // targets in expr, `condition`, body, otherwise
    kSet,         // targets or target.attribute = expr, or = body when expr is null
    kMacro,       // macro
    kGeneration,  // body
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  ExprPtr expr;
  ExprPtr condition;
  std::vector<std::pair<ExprPtr, Block>> branches;
  std::vector<NameId> targets;
  std::string attribute;  // of the namespace targets[0]
  Block body;
  Block otherwise;
  std::unique_ptr<MacroNode> macro;
};

struct MacroNode {
  NameId name = -1;
  int line = 0;
  std::vector<NameId> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Block body;
};

struct Template {
  Block body;
  std::vector<std::string> names;
  std::unordered_map<std::string, NameId> name_ids;
  NameId loop_name = -1;
};

// Throws Failure: kInvalidArgument for a syntax error, kUnsupported for a construct, filter, test,
// function or method outside the subset.
std::shared_ptr<const Template> parse(std::string_view source);

}  // namespace millrace::text::jinja
