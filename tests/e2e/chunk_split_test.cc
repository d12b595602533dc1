// A worker driven plan by plan: every split of a prompt into chunks gives, at every position, the
// logits of Transformers, and the same bits as every other split.
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "parallel/process_grid.h"
#include "parallel/thread_communicator.h"
#include "tests/support/engine_harness.h"
#include "worker/worker.h"

namespace millrace {
namespace {

nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/tiny/" + name + ".json");
  return nlohmann::json::parse(file);
}

std::vector<float> floats_of_base64(const std::string& text) {
  std::vector<unsigned char> bytes(text.size() / 4 * 3);
  const int n = EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(text.data()),
                                static_cast<int>(text.size()));
  EXPECT_GT(n, 0);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// Log-probabilities of the whole vocabulary, in the order of ids.
std::vector<float> row_of(const std::vector<TokenLogprob>& top) {
  std::vector<float> row(top.size(), NAN);
  for (const TokenLogprob& t : top) row.at(static_cast<std::size_t>(t.token)) = t.logprob;
  return row;
}

// One worker that holds the whole model.
class SoleWorker {
 public:
  explicit SoleWorker(const CellSetup& setup) : setup_(setup), group_(2) {
    // Making communicators takes both ranks; rank 0 has nothing else to do here.
    std::thread coordinator([this] {
      const auto world = group_.take(0);
      parallel::make_cell_comms(*world, *parallel::ProcessGrid::make(1, 1, 2));
    });
    world_ = group_.take(1);
    comms_ = std::make_unique<parallel::CellComms>(
        parallel::make_cell_comms(*world_, *parallel::ProcessGrid::make(1, 1, 2)));
    coordinator.join();
    weights_ = *load_weights(setup.source, setup.model, setup.shard({0, 0}));
    worker_ = std::make_unique<Worker>(setup.worker_options(), setup.model, weights_,
                                       setup.placement, *comms_);
  }

  // The prompt in chunks of these lengths; what the model says after each of its tokens.
  std::vector<std::vector<float>> run(const std::vector<std::int32_t>& ids,
                                      const std::vector<std::size_t>& chunks) {
    std::vector<std::vector<float>> rows;
    std::size_t begin = 0;
    for (const std::size_t length : chunks) {
      const StepResult& result = worker_->execute(plan(ids, begin, length));
      for (const PromptLogprobs& p : result.prompt_logprobs) rows.push_back(row_of(p.top));
      for (const SampledToken& s : result.sampled) rows.push_back(row_of(s.top));
      begin += length;
    }
    EXPECT_EQ(rows.size(), ids.size());
    return rows;
  }

 private:
  StepPlan plan(const std::vector<std::int32_t>& ids, std::size_t begin, std::size_t length) {
    StepPlan plan;
    plan.step = ++step_;
    plan.bucket = 64;
    LanePlan& lane = plan.lanes.emplace_back();
    Chunk chunk;
    chunk.slot = 3;
    chunk.position = static_cast<std::uint32_t>(begin);
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = first + static_cast<std::ptrdiff_t>(length);
    chunk.tokens.assign(first, last);
    chunk.sample = begin + length == ids.size();
    chunk.prompt_targets.assign(first + 1, chunk.sample ? last : last + 1);
    if (chunk.sample) chunk.prompt_targets.push_back(-1);
    if (begin == 0) {
      SequenceStart start;
      start.slot = 3;
      start.sampling.temperature = 0;
      start.sampling.prompt_logprobs = true;
      start.sampling.logprobs = setup_.model.vocab_size;
      start.prompt_tokens = static_cast<std::uint32_t>(ids.size());
      lane.starts.push_back(start);
    }
    constexpr BlockId kBlocks[] = {5, 2};  // of 32 positions each
    for (std::size_t b = (begin + 31) / 32; b < (begin + length + 31) / 32; ++b) {
      chunk.new_blocks.push_back(kBlocks[b]);
    }
    lane.chunks.push_back(std::move(chunk));
    return plan;
  }

  const CellSetup& setup_;
  parallel::ThreadGroup group_;
  std::unique_ptr<parallel::Communicator> world_;
  std::unique_ptr<parallel::CellComms> comms_;
  ModelWeights weights_;
  std::unique_ptr<Worker> worker_;
  std::uint64_t step_ = 0;
};

class ChunkSplits : public ::testing::TestWithParam<std::string> {};

TEST_P(ChunkSplits, EveryPositionIsTransformersAndEverySplitTheSameBits) {
  const nlohmann::json data = golden(GetParam());
  const Result<CellSetup> setup = make_cell_setup(testing::test_config(testing::random_checkpoint(
      GetParam(), data.at("make_random_checkpoint_arguments").get<std::vector<std::string>>())));
  ASSERT_TRUE(setup) << setup.error().to_string();
  const nlohmann::json& prompt = data.at("every_position");
  const auto ids = prompt.at("ids").get<std::vector<std::int32_t>>();
  const std::vector<float> logits =
      floats_of_base64(prompt.at("logits_f32_base64").get<std::string>());
  const auto vocab = static_cast<std::size_t>(setup->model.vocab_size);
  ASSERT_EQ(ids.size(), 40U);
  ASSERT_EQ(logits.size(), ids.size() * vocab);

  SoleWorker worker(*setup);
  const auto whole = worker.run(ids, {ids.size()});
  ASSERT_EQ(whole.size(), ids.size());
  double worst = 0;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    double sum = 0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(double{logits[t * vocab + v]});
    for (std::size_t v = 0; v < vocab; ++v) {
      const double expected = double{logits[t * vocab + v]} - std::log(sum);
      worst = std::max(worst, std::abs(double{whole[t].at(v)} - expected));
    }
  }
  EXPECT_LT(worst, 1e-4);  // absolute, of logits whose norm is above 1
  RecordProperty("worst_difference", std::to_string(worst));

  for (std::size_t cut = 1; cut < ids.size(); ++cut) {
    EXPECT_EQ(worker.run(ids, {cut, ids.size() - cut}), whole) << "cut after " << cut;
  }
  EXPECT_EQ(worker.run(ids, std::vector<std::size_t>(ids.size(), 1)), whole) << "token by token";
  EXPECT_EQ(worker.run(ids, std::vector<std::size_t>(ids.size() / 2, 2)), whole) << "by twos";
}

INSTANTIATE_TEST_SUITE_P(Models, ChunkSplits, ::testing::Values("dense", "moe", "moe-untied"));

}  // namespace
}  // namespace millrace
