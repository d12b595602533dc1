#include "cli/local_engine.h"

namespace millrace {

namespace {

// The engine cancels no sequence whose end it waits for: such an end is the cell's own.
bool failed(const TokenEvent& event) {
  return event.finish == FinishReason::kError || event.finish == FinishReason::kCancelled ||
         event.finish == FinishReason::kRefused;
}

}  // namespace

LocalEngine::LocalEngine(CellSetup setup) : setup_(std::move(setup)) {}

LocalEngine::~LocalEngine() { ranks_.reset(); }

Result<std::unique_ptr<LocalEngine>> LocalEngine::start(ClusterConfig config,
                                                        std::function<void(double)> on_loading) {
  Result<CellSetup> setup = make_cell_setup(std::move(config));
  if (!setup) return setup.error();
  std::unique_ptr<LocalEngine> engine(new LocalEngine(std::move(*setup)));
  LocalEngine* self = engine.get();
  const auto put = [self](Event event) {
    const std::lock_guard lock(self->mutex_);
    self->events_.push_back(std::move(event));
    self->wake_.notify_one();
  };
  CoordinatorHooks hooks;
  hooks.on_loading = std::move(on_loading);
  hooks.on_ready = [self](Cell& cell) {
    const std::lock_guard lock(self->mutex_);
    self->cell_ = &cell;
  };
  hooks.on_ended = [self] {  // the cell goes with its rank's thread
    const std::lock_guard lock(self->mutex_);
    self->cell_ = nullptr;
  };
  hooks.cell.on_tokens = [put](std::vector<TokenEvent> events) { put(std::move(events)); };
  hooks.cell.on_prompt_logprobs = [put](PromptLogprobsEvent event) { put(std::move(event)); };
  engine->ranks_ = std::make_unique<EmbeddedCell>(engine->setup_, std::move(hooks));
  if (!engine->ranks_->wait_ready()) {
    return Error{ErrorCode::kInternal, "", engine->ranks_->failure()};
  }
  return engine;
}

// Under the lock the cell cannot end between the look at it and its use.
Result<void> LocalEngine::submit(SequenceRequest request) {
  const std::lock_guard lock(mutex_);
  if (cell_ != nullptr && cell_->submit(std::move(request))) return {};
  const std::string why = ranks_->failure();
  return Error{ErrorCode::kUnavailable, "", why.empty() ? "the cell takes no more work" : why};
}

void LocalEngine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (cell_ != nullptr) cell_->cancel(id);
}

LocalEngine::Event LocalEngine::next() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return !events_.empty(); });
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

std::optional<Result<FinishReason>> LocalEngine::take(
    const std::vector<TokenEvent>& events, RequestId id,
    const std::function<bool(const TokenEvent&)>& on_token) {
  for (const TokenEvent& token : events) {
    if (token.id != id) continue;  // the tail of a sequence that was cancelled
    if (failed(token)) return Result<FinishReason>(Error{ErrorCode::kInternal, "", token.error});
    const bool go_on = !token.has_token || on_token(token);
    if (token.finish != FinishReason::kNone) return token.finish;
    if (!go_on) {
      cancel(id);
      return FinishReason::kCancelled;
    }
  }
  return std::nullopt;
}

Result<FinishReason> LocalEngine::generate(
    SequenceRequest request, const std::function<bool(const TokenEvent&)>& on_token,
    const std::function<void(const PromptLogprobsEvent&)>& on_prompt) {
  request.id = next_id_++;
  const RequestId id = request.id;
  if (auto ok = submit(std::move(request)); !ok) return ok.error();
  while (true) {
    const Event event = next();
    if (const auto* prompt = std::get_if<PromptLogprobsEvent>(&event)) {
      if (prompt->id == id && on_prompt) on_prompt(*prompt);
      continue;
    }
    if (auto end = take(std::get<std::vector<TokenEvent>>(event), id, on_token)) return *end;
  }
}

Result<void> LocalEngine::run(std::vector<SequenceRequest> requests,
                              const std::function<void(std::span<const TokenEvent>)>& on_step) {
  const RequestId first = next_id_;
  std::size_t running = requests.size();
  next_id_ += running;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].id = first + i;
    if (auto ok = submit(std::move(requests[i])); !ok) return ok;
  }
  while (running > 0) {
    Event event = next();
    auto* tokens = std::get_if<std::vector<TokenEvent>>(&event);
    if (tokens == nullptr) continue;
    std::erase_if(*tokens, [first](const TokenEvent& token) { return token.id < first; });
    for (TokenEvent& token : *tokens) {
      if (failed(token)) return Error{ErrorCode::kInternal, "", token.error};
      if (token.finish != FinishReason::kNone) --running;
      token.id -= first;
    }
    on_step(*tokens);
  }
  return {};
}

}  // namespace millrace
