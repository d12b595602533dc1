#include "net/text/jinja_interpreter.h"

#include <fmt/format.h>

#include <ctime>
#include <deque>
#include <optional>

#include "net/text/jinja_filters.h"
#include "net/text/jinja_runtime.h"

namespace millrace::text::jinja {
namespace {

// Frames of eval() and exec() on the stack at most; at about 400 bytes each well under a megabyte.
constexpr int kMaxFrames = 2000;
constexpr Int kMaxRange = 100'000;  // jinja2's sandbox has the same

struct Scope {
  Scope* parent = nullptr;  // null: the template's own variables come next
  std::vector<std::pair<NameId, Value>> variables;
};

enum class Flow { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const Template& tree, const RenderInput& input, const RenderLimits& limits)
      : tree_(tree), input_(input), runtime_(limits), globals_(tree.names.size()) {
    define("namespace", Value(Value::Data(Builtin::kNamespace)));
    define("range", Value(Value::Data(Builtin::kRange)));
    define("dict", Value(Value::Data(Builtin::kDict)));
    define("raise_exception", Value(Value::Data(Builtin::kRaiseException)));
    define("strftime_now", Value(Value::Data(Builtin::kStrftimeNow)));
    for (const auto& [name, value] : input.variables) define(name, value);
  }

  ~Interpreter() {
    // A template can make a namespace contain itself; taking the attributes out breaks the circle.
    for (Namespace& ns : namespaces_) ns.attributes.clear();
  }

  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  std::string run() {
    std::string out;
    exec(tree_.body, nullptr, out);
    return out;
  }

 private:
  struct Frame {
    explicit Frame(Interpreter& owner) : interpreter(owner) {
      if (++interpreter.frames_ > kMaxFrames) fail_exhausted("the template nests too deeply");
    }
    ~Frame() { --interpreter.frames_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    Interpreter& interpreter;
  };

  // --- variables

  void define(const std::string& name, Value value) {
    const auto it = tree_.name_ids.find(name);
    if (it != tree_.name_ids.end()) globals_[it->second] = std::move(value);
  }

  Value lookup(NameId id, Scope* scope) const {
    for (; scope; scope = scope->parent) {
      for (const auto& [name, value] : scope->variables) {
        if (name == id) return value;
      }
    }
    if (globals_[id]) return *globals_[id];
    return Value(Value::Data(Undefined{&tree_.names[id]}));
  }

  void assign(NameId id, Scope* scope, Value value) {
    if (!scope) {
      globals_[id] = std::move(value);
      return;
    }
    for (auto& [name, old] : scope->variables) {
      if (name == id) {
        old = std::move(value);
        return;
      }
    }
    scope->variables.emplace_back(id, std::move(value));
  }

  void assign_targets(const std::vector<NameId>& targets, Scope* scope, const Value& value) {
    if (targets.size() == 1) return assign(targets[0], scope, value);
    const std::vector<Value> items = iterate(runtime_, value);
    if (items.size() != targets.size()) {
      fail(fmt::format("{} values cannot be unpacked into {} names", items.size(), targets.size()));
    }
    for (std::size_t i = 0; i < items.size(); ++i) assign(targets[i], scope, items[i]);
  }

  // --- statements

  void append(std::string& out, const Value& value) {
    if (const std::string* text = value.str()) {
      append(out, *text);
    } else {
      append(out, runtime_.text(value));
    }
  }
  void append(std::string& out, const std::string& text) {
    runtime_.charge_bytes(text.size());
    if (out.size() + text.size() > runtime_.limits().max_output_bytes) {
      fail_exhausted("the rendered text becomes too long");
    }
    out += text;
  }

  Flow exec(const Block& block, Scope* scope, std::string& out) {
    const Frame frame(*this);
    for (const StmtPtr& stmt : block) {
      try {
        const Flow flow = exec(*stmt, scope, out);
        if (flow != Flow::kNext) return flow;
      } catch (Failure& failure) {
        if (failure.line == 0) failure.line = stmt->line;
        throw;
      }
    }
    return Flow::kNext;
  }

  Flow exec(const Stmt& stmt, Scope* scope, std::string& out) {
    runtime_.charge(1);
    switch (stmt.kind) {
      case Stmt::Kind::kText:
        append(out, stmt.text);
        return Flow::kNext;
      case Stmt::Kind::kPrint:
        append(out, eval(*stmt.expr, scope));
        return Flow::kNext;
      case Stmt::Kind::kIf:
        for (const auto& [condition, body] : stmt.branches) {
          if (!condition || eval(*condition, scope).truthy()) return exec(body, scope, out);
        }
        return Flow::kNext;
      case Stmt::Kind::kFor:
        exec_for(stmt, scope, out);
        return Flow::kNext;
      case Stmt::Kind::kSet:
        exec_set(stmt, scope);
        return Flow::kNext;
      case Stmt::Kind::kMacro:
        assign(stmt.macro->name, scope, Value(Value::Data(stmt.macro.get())));
        return Flow::kNext;
      case Stmt::Kind::kGeneration: {
        Scope inner{scope, {}};
        return exec(stmt.body, &inner, out);
      }
      case Stmt::Kind::kBreak:
        return Flow::kBreak;
      case Stmt::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  void exec_for(const Stmt& stmt, Scope* scope, std::string& out) {
    std::vector<Value> items = iterate(runtime_, eval(*stmt.expr, scope));
    Scope inner{scope, {}};
    if (stmt.condition) {
      std::vector<Value> kept;
      for (Value& item : items) {
        inner.variables.clear();
        assign_targets(stmt.targets, &inner, item);
        if (eval(*stmt.condition, &inner).truthy()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      inner.variables.clear();
      exec(stmt.otherwise, &inner, out);
      return;
    }
    const auto loop = std::make_shared<LoopState>();
    loop->items = std::move(items);
    for (; loop->index0 < loop->items.size(); ++loop->index0) {
      runtime_.charge(1);
      inner.variables.clear();
      assign(tree_.loop_name, &inner, Value(Value::Data(loop)));
      assign_targets(stmt.targets, &inner, loop->items[loop->index0]);
      if (exec(stmt.body, &inner, out) == Flow::kBreak) break;
    }
  }

  void exec_set(const Stmt& stmt, Scope* scope) {
    Value value;
    if (stmt.expr) {
      value = eval(*stmt.expr, scope);
    } else {
      std::string text;
      Scope inner{scope, {}};
      exec(stmt.body, &inner, text);
      value = Value::string(std::move(text));
    }
    if (stmt.attribute.empty()) return assign_targets(stmt.targets, scope, value);
    const Value target = lookup(stmt.targets[0], scope);
    Namespace* const* ns = target.as<Namespace*>();
    if (!ns) fail("cannot assign attribute on non-namespace object");
    set_attribute(**ns, stmt.attribute, std::move(value));
  }

  static void set_attribute(Namespace& ns, const std::string& name, Value value) {
    if (Value* old = ns.find(name)) {
      *old = std::move(value);
    } else {
      ns.attributes.emplace_back(name, std::move(value));
    }
  }

  // --- expressions

  Value eval(const Expr& e, Scope* scope) {
    const Frame frame(*this);
    runtime_.charge(1);
    using Kind = Expr::Kind;
    switch (e.kind) {
      case Kind::kConstant:
        return e.value;
      case Kind::kName:
        return lookup(e.name, scope);
      case Kind::kList:
      case Kind::kTuple:
        return runtime_.list(eval_all(e, 0, scope), e.kind == Kind::kTuple);
      case Kind::kDict:
        return eval_dict(e, scope);
      case Kind::kAttribute:
        return attribute_of(eval(*e.args[0], scope), e.text);
      case Kind::kItem:
        return eval_item(e, scope);
      case Kind::kSlice:
        return eval_slice(e, scope);
      case Kind::kCall:
        return call(eval(*e.args[0], scope), e, scope);
      case Kind::kMethodCall:
        return eval_method(e, scope);
      case Kind::kFilter: {
        const Value subject = eval(*e.args[0], scope);
        return e.filter->apply(runtime_, subject, eval_args(e, scope));
      }
      case Kind::kTest: {
        const Value subject = eval(*e.args[0], scope);
        const std::vector<Value> args = eval_all(e, 1, scope);
        for (const Value& arg : args) runtime_.charge_value(arg);
        return Value::boolean(e.test->apply(subject, args));
      }
      case Kind::kNot:
        return Value::boolean(!eval(*e.args[0], scope).truthy());
      case Kind::kNegative:
        return negative(eval(*e.args[0], scope));
      case Kind::kPositive:
        return negative(negative(eval(*e.args[0], scope)));
      case Kind::kAnd: {
        Value left = eval(*e.args[0], scope);
        return left.truthy() ? eval(*e.args[1], scope) : left;
      }
      case Kind::kOr: {
        Value left = eval(*e.args[0], scope);
        return left.truthy() ? left : eval(*e.args[1], scope);
      }
      case Kind::kBinary: {
        const Value left = eval(*e.args[0], scope);
        return binary(runtime_, e.binary, left, eval(*e.args[1], scope));
      }
      case Kind::kConcat:
        return eval_concat(e, scope);
      case Kind::kCompare:
        return eval_compare(e, scope);
      case Kind::kConditional:
        if (eval(*e.args[0], scope).truthy()) return eval(*e.args[1], scope);
        return e.args[2] ? eval(*e.args[2], scope) : Value();
    }
    return Value();
  }

  std::vector<Value> eval_all(const Expr& e, std::size_t from, Scope* scope) {
    std::vector<Value> values;
    for (std::size_t i = from; i < e.args.size(); ++i) values.push_back(eval(*e.args[i], scope));
    return values;
  }

  CallArgs eval_args(const Expr& e, Scope* scope) {
    CallArgs args;
    args.positional = eval_all(e, 1, scope);
    for (const auto& [name, value] : e.kwargs) args.named.emplace_back(name, eval(*value, scope));
    return args;
  }

  Value eval_dict(const Expr& e, Scope* scope) {
    std::vector<std::pair<std::string, Value>> items;
    for (std::size_t i = 0; i + 1 < e.args.size(); i += 2) {
      const Value key = eval(*e.args[i], scope);
      if (!key.str()) fail("keys of a dictionary must be strings in a chat template");
      items.emplace_back(*key.str(), eval(*e.args[i + 1], scope));
    }
    runtime_.charge_items(items.size());
    return Value::dict(std::move(items));
  }

  Value eval_item(const Expr& e, Scope* scope) {
    const Value object = eval(*e.args[0], scope);
    const Value key = eval(*e.args[1], scope);
    // A constant key gives the name for "... is undefined"; its text lives in the tree.
    return item_of(runtime_, object, key, e.args[1]->value.str());
  }

  Value eval_slice(const Expr& e, Scope* scope) {
    const Value object = eval(*e.args[0], scope);
    Value bounds[3];
    for (int i = 0; i < 3; ++i) {
      bounds[i] = e.args[i + 1] ? eval(*e.args[i + 1], scope) : Value::none();
    }
    return slice(runtime_, object, bounds[0], bounds[1], bounds[2]);
  }

  Value eval_concat(const Expr& e, Scope* scope) {
    std::string out;
    for (const ExprPtr& part : e.args) append(out, eval(*part, scope));
    return Value::string(std::move(out));
  }

  Value eval_compare(const Expr& e, Scope* scope) {
    Value left = eval(*e.args[0], scope);
    for (std::size_t i = 0; i < e.compares.size(); ++i) {
      Value right = eval(*e.args[i + 1], scope);
      if (!compare_values(runtime_, e.compares[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value eval_method(const Expr& e, Scope* scope) {
    const Value object = eval(*e.args[0], scope);
    if (object.is_undefined()) fail_undefined(object);
    if (e.method && object.str() && e.method->on_string) {
      return e.method->on_string(runtime_, *object.str(), eval_args(e, scope));
    }
    if (e.method && object.dict() && e.method->on_dict) {
      return e.method->on_dict(runtime_, *object.dict(), eval_args(e, scope));
    }
    if (e.method && object.list() && e.method->on_list) {
      return e.method->on_list(runtime_, *object.list(), eval_args(e, scope));
    }
    if (const auto* loop = object.as<std::shared_ptr<LoopState>>(); loop && e.text == "cycle") {
      const std::vector<Value> values = eval_all(e, 1, scope);
      if (values.empty()) fail("no items for cycling given");
      return values[(*loop)->index0 % values.size()];
    }
    if (Namespace* const* ns = object.as<Namespace*>()) {
      if (const Value* callee = (*ns)->find(e.text)) return call(*callee, e, scope);
    }
    fail(fmt::format("'{}' object has no method '{}'", object.type_name(), e.text));
  }

  Value call(const Value& callee, const Expr& e, Scope* scope) {
    if (callee.is_undefined()) fail_undefined(callee);
    if (const MacroNode* const* macro = callee.as<const MacroNode*>()) {
      return call_macro(**macro, eval_args(e, scope));
    }
    const Builtin* builtin = callee.as<Builtin>();
    if (!builtin) fail(fmt::format("'{}' object is not callable", callee.type_name()));
    return call_builtin(*builtin, eval_args(e, scope));
  }

  Value call_macro(const MacroNode& macro, const CallArgs& args) {
    const std::string& name = tree_.names[macro.name];
    if (++macro_depth_ > runtime_.limits().max_depth) {
      fail_exhausted(fmt::format("the macro '{}' calls itself too deeply", name));
    }
    std::vector<std::string_view> parameters;
    for (const NameId id : macro.parameters) parameters.push_back(tree_.names[id]);
    const auto bound = args.bind(name, parameters);
    Scope scope;
    const std::size_t plain = macro.parameters.size() - macro.defaults.size();
    for (std::size_t i = 0; i < bound.size(); ++i) {
      Value value(Value::Data(Undefined{&tree_.names[macro.parameters[i]]}));
      if (bound[i]) {
        value = *bound[i];
      } else if (i >= plain) {
        value = eval(*macro.defaults[i - plain], &scope);
      }
      scope.variables.emplace_back(macro.parameters[i], std::move(value));
    }
    std::string out;
    exec(macro.body, &scope, out);
    --macro_depth_;
    return Value::string(std::move(out));
  }

  Value call_builtin(Builtin builtin, const CallArgs& args) {
    switch (builtin) {
      case Builtin::kNamespace:
        return make_namespace(args);
      case Builtin::kDict: {
        if (!args.positional.empty()) fail("dict() takes named arguments only in a chat template");
        return Value::dict(args.named);
      }
      case Builtin::kRange:
        return make_range(args);
      case Builtin::kRaiseException: {
        const auto bound = args.bind("raise_exception", {"message"}, 1);
        throw Failure{ErrorCode::kInvalidArgument, runtime_.text(*bound[0]), -1};
      }
      case Builtin::kStrftimeNow:
        return strftime_now(args);
    }
    return Value();
  }

  Value make_namespace(const CallArgs& args) {
    namespaces_.emplace_back();
    Namespace& ns = namespaces_.back();
    if (args.positional.size() > 1) fail("namespace() takes at most one mapping");
    for (const Value& mapping : args.positional) {
      if (!mapping.dict()) fail("namespace() takes a mapping");
      for (const auto& [name, value] : mapping.dict()->items) {
        if (name.starts_with("_")) fail("a namespace attribute cannot begin with an underscore");
        set_attribute(ns, name, value);
      }
    }
    for (const auto& [name, value] : args.named) set_attribute(ns, name, value);
    return Value(Value::Data(&ns));
  }

  Value make_range(const CallArgs& args) {
    Int bounds[3] = {0, 0, 1};
    const auto& given = args.positional;
    if (!args.named.empty() || given.empty() || given.size() > 3)
      fail("range() takes 1 to 3 integers");
    for (std::size_t i = 0; i < given.size(); ++i) {
      const Int* value = given[i].as<Int>();
      if (!value) fail("range() takes integers");
      bounds[given.size() == 1 ? 1 : i] = *value;
    }
    const Int from = bounds[0], to = bounds[1], step = bounds[2];
    if (step == 0) fail("range() needs a step other than zero");
    std::vector<Value> items;
    for (Int i = from; step > 0 ? i < to : i > to;) {
      if (static_cast<Int>(items.size()) == kMaxRange) fail_exhausted("range() is too long");
      items.push_back(Value::integer(i));
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return runtime_.list(std::move(items));
  }

  Value strftime_now(const CallArgs& args) {
    const auto bound = args.bind("strftime_now", {"format"}, 1);
    if (!bound[0]->str()) fail("strftime_now() takes a string");
    const std::string& format = *bound[0]->str();
    if (format.empty()) return Value::string("");
    const std::time_t seconds = std::chrono::system_clock::to_time_t(input_.now());
    std::tm parts{};
    localtime_r(&seconds, &parts);
    char buffer[1024];
    const std::size_t size = std::strftime(buffer, sizeof buffer, format.c_str(), &parts);
    if (size == 0) fail("strftime_now() gives an empty or too long text");
    return Value::string(std::string(buffer, size));
  }

  const Template& tree_;
  const RenderInput& input_;
  Runtime runtime_;
  std::vector<std::optional<Value>> globals_;
  std::deque<Namespace> namespaces_;  // a deque: values point to them
  int frames_ = 0;
  int macro_depth_ = 0;
};

}  // namespace

std::string run(const Template& tree, const RenderInput& input, const RenderLimits& limits) {
  return Interpreter(tree, input, limits).run();
}

}  // namespace millrace::text::jinja
