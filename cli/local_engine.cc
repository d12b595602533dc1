#include "cli/local_engine.h"

namespace millrace {

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
  hooks.on_ready = [self](Cell& cell) { self->cell_ = &cell; };
  hooks.cell.on_tokens = [put](std::vector<TokenEvent> events) {
    for (TokenEvent& event : events) put(std::move(event));
  };
  hooks.cell.on_prompt_logprobs = [put](PromptLogprobsEvent event) { put(std::move(event)); };
  engine->ranks_ = std::make_unique<EmbeddedCell>(engine->setup_, std::move(hooks));
  if (!engine->ranks_->wait_ready()) {
    return Error{ErrorCode::kInternal, "", engine->ranks_->failure()};
  }
  return engine;
}

LocalEngine::Event LocalEngine::next() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return !events_.empty(); });
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

Result<FinishReason> LocalEngine::generate(
    SequenceRequest request, const std::function<bool(const TokenEvent&)>& on_token,
    const std::function<void(const PromptLogprobsEvent&)>& on_prompt) {
  request.id = next_id_++;
  const RequestId id = request.id;
  if (!cell_->submit(std::move(request))) {
    return Error{ErrorCode::kUnavailable, "", ranks_->failure()};
  }
  while (true) {
    const Event event = next();
    if (const auto* prompt = std::get_if<PromptLogprobsEvent>(&event)) {
      if (prompt->id == id && on_prompt) on_prompt(*prompt);
      continue;
    }
    const auto& token = std::get<TokenEvent>(event);
    if (token.id != id) continue;  // the tail of a sequence that was cancelled
    if (token.finish == FinishReason::kError) {
      return Error{ErrorCode::kInternal, "", token.error};
    }
    const bool go_on = !token.has_token || on_token(token);
    if (token.finish != FinishReason::kNone) return token.finish;
    if (!go_on) {
      cell_->cancel(id);
      return FinishReason::kCancelled;
    }
  }
}

}  // namespace millrace
