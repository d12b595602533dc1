#include "net/node_agent.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>

#include <future>
#include <mutex>
#include <thread>

#include "net/node_agent_client.h"
#include "net/node_agent_stream.h"
#include "net/psk_tls.h"
#include "tests/support/temp_dir.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

const std::string kSecret(32, 's');

std::vector<std::string> command_words() {
  return {"orted",
          "-mca",
          "ess",
          "env",
          "-mca",
          "ess_base_jobid",
          "7",
          "-mca",
          "ess_base_vpid",
          "1",
          "-mca",
          "ess_base_num_procs",
          "2",
          "-mca",
          "orte_hnp_uri",
          "7.0;tcp://10.0.0.1:5"};
}

// What a test's daemon does: writes `output`, and exits with `status` once told to.
struct Script {
  std::string output;
  std::atomic<int> status{-1};  // -1: runs on
  std::atomic<int> launched{0};
  std::atomic<int> ended{0};
};

class ScriptedDaemon final : public DaemonProcess {
 public:
  explicit ScriptedDaemon(Script& script) : script_(script) {
    EXPECT_EQ(pipe2(ends_, O_NONBLOCK | O_CLOEXEC), 0);
    EXPECT_EQ(::write(ends_[1], script.output.data(), script.output.size()),
              static_cast<ssize_t>(script.output.size()));
    ++script_.launched;
  }
  ~ScriptedDaemon() override {
    close(ends_[0]);
    close(ends_[1]);
  }
  int output() const override { return ends_[0]; }
  std::optional<int> poll_exit() override {
    return script_.status < 0 ? std::nullopt : std::optional<int>(script_.status);
  }
  void end() override { ++script_.ended; }

 private:
  Script& script_;
  int ends_[2];
};

class NodeAgentTest : public ::testing::Test {
 protected:
  void start(milliseconds timeout = milliseconds(2000), std::uint32_t max_connections = 16) {
    NodeAgentOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    options.secret = kSecret;
    options.timeout = timeout;
    options.max_connections = max_connections;
    agent_.emplace(
        io_, options, [this](const OrtedCommand&) -> Result<std::unique_ptr<DaemonProcess>> {
          return std::unique_ptr<DaemonProcess>(std::make_unique<ScriptedDaemon>(script_));
        });
    const auto listening = agent_->listen();
    ASSERT_TRUE(listening) << listening.error().to_string();
    port_ = agent_->port();
    thread_ = std::thread([this] { io_.run(); });
  }
  void stop() {
    if (!thread_.joinable()) return;
    asio::post(io_, [this] { agent_->close(); });
    thread_.join();
  }
  void TearDown() override { stop(); }

  NodeAgentCall call(milliseconds timeout = milliseconds(2000)) const {
    return {"127.0.0.1", port_, kSecret, command_words(), timeout};
  }
  Result<int> perform(const NodeAgentCall& c) {
    return call_node_agent(c, [this](std::string_view bytes) {
      const std::lock_guard lock(mutex_);
      output_ += bytes;
    });
  }
  tcp::socket raw_connection(asio::io_context& io) const {
    tcp::socket socket(io);
    socket.connect({asio::ip::make_address("127.0.0.1"), port_});
    return socket;
  }
  template <class F>
  static bool within(milliseconds limit, F condition) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return true;
  }

  asio::io_context io_{1};
  Script script_;
  std::optional<NodeAgent> agent_;
  std::thread thread_;
  std::uint16_t port_ = 0;
  std::mutex mutex_;
  std::string output_;
};

TEST_F(NodeAgentTest, OutputAndExitStatusComeBack) {
  script_.output = "from the daemon\n";
  script_.status = 7;
  start();
  const Result<int> status = perform(call());
  ASSERT_TRUE(status) << status.error().to_string();
  EXPECT_EQ(*status, 7);
  EXPECT_EQ(output_, "from the daemon\n");
  EXPECT_EQ(script_.ended, 1) << "what a daemon leaves behind is ended too";
}

TEST_F(NodeAgentTest, PingsKeepASilentDaemon) {
  start(milliseconds(300));
  auto status = std::async(std::launch::async, [this] { return perform(call(milliseconds(300))); });
  EXPECT_EQ(status.wait_for(milliseconds(1200)), std::future_status::timeout);
  script_.status = 0;
  const Result<int> result = status.get();
  ASSERT_TRUE(result) << result.error().to_string();
  EXPECT_EQ(*result, 0);
}

TEST_F(NodeAgentTest, AnotherSecretIsRefusedByBoth) {
  start();
  NodeAgentCall wrong = call();
  wrong.secret = std::string(32, 't');
  const Result<int> status = perform(wrong);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("node_agent.secret_file"));
  EXPECT_EQ(script_.launched, 0);
  script_.status = 0;
  EXPECT_TRUE(perform(call())) << "the agent serves on";
}

TEST_F(NodeAgentTest, TlsWithoutTheKeyIsRefused) {
  start();
  asio::io_context io;
  asio::ssl::context context(asio::ssl::context::tlsv13_client);
  context.set_verify_mode(asio::ssl::verify_none);
  asio::ssl::stream<tcp::socket> stream(raw_connection(io), context);
  boost::system::error_code error;
  stream.handshake(asio::ssl::stream_base::client, error);
  EXPECT_TRUE(error);
}

TEST_F(NodeAgentTest, OlderTlsIsRefused) {
  start();
  asio::io_context io;
  asio::ssl::context context(asio::ssl::context::tlsv12_client);
  asio::ssl::stream<tcp::socket> stream(raw_connection(io), context);
  boost::system::error_code error;
  stream.handshake(asio::ssl::stream_base::client, error);
  EXPECT_TRUE(error);
}

// A server with a certificate of its own but without the secret must not get the command.
TEST_F(NodeAgentTest, AnImpostorDoesNotGetTheCommand) {
  asio::io_context io;
  tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  port_ = acceptor.local_endpoint().port();
  std::thread impostor([&] {
    asio::ssl::context context(asio::ssl::context::tlsv13_server);
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_sign(certificate, key, EVP_sha256());
    SSL_CTX_use_certificate(context.native_handle(), certificate);
    SSL_CTX_use_PrivateKey(context.native_handle(), key);
    X509_free(certificate);
    EVP_PKEY_free(key);
    asio::ssl::stream<tcp::socket> stream(acceptor.accept(), context);
    boost::system::error_code error;
    stream.handshake(asio::ssl::stream_base::server, error);
    std::array<char, 5> header{};
    if (!error) asio::read(stream, asio::buffer(header), error);
    EXPECT_TRUE(error);
  });
  const Result<int> status = perform(call());
  impostor.join();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("certificate verify failed"));
}

TEST_F(NodeAgentTest, AnotherCommandIsRefusedWithItsReason) {
  start();
  NodeAgentCall other = call();
  other.command = {"sh", "-c", "id"};
  const Result<int> status = perform(other);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("not 'sh'"));
  EXPECT_EQ(script_.launched, 0);
}

TEST_F(NodeAgentTest, ALeaderThatGoesEndsItsDaemon) {
  start();
  const pid_t leader = fork();
  if (leader == 0) {
    const Result<int> ignored = call_node_agent(call(), [](std::string_view) {});
    _exit(ignored ? 0 : 1);
  }
  ASSERT_TRUE(within(milliseconds(5000), [this] { return script_.launched == 1; }));
  EXPECT_EQ(script_.ended, 0);
  kill(leader, SIGKILL);
  EXPECT_TRUE(within(milliseconds(1000), [this] { return script_.ended == 1; }));
  waitpid(leader, nullptr, 0);
}

TEST_F(NodeAgentTest, ALeaderThatFallsSilentEndsItsDaemon) {
  start(milliseconds(400));
  const pid_t leader = fork();
  if (leader == 0) {
    const Result<int> ignored = call_node_agent(call(milliseconds(400)), [](std::string_view) {});
    _exit(ignored ? 0 : 1);
  }
  ASSERT_TRUE(within(milliseconds(5000), [this] { return script_.launched == 1; }));
  kill(leader, SIGSTOP);
  EXPECT_TRUE(within(milliseconds(2000), [this] { return script_.ended == 1; }));
  kill(leader, SIGKILL);
  waitpid(leader, nullptr, 0);
}

TEST_F(NodeAgentTest, ClosingTheAgentEndsEverythingAndTellsTheLeader) {
  start();
  auto status = std::async(std::launch::async, [this] { return perform(call()); });
  ASSERT_TRUE(within(milliseconds(5000), [this] { return script_.launched == 1; }));
  stop();
  EXPECT_EQ(script_.ended, 1);
  EXPECT_FALSE(status.get());
}

TEST_F(NodeAgentTest, MoreThanTheLimitIsRefused) {
  start(milliseconds(2000), 1);
  auto first = std::async(std::launch::async, [this] { return perform(call()); });
  ASSERT_TRUE(within(milliseconds(5000), [this] { return script_.launched == 1; }));
  const Result<int> second = perform(call());
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().message, HasSubstr("node_agent.max_connections"));
  script_.status = 0;
  EXPECT_TRUE(first.get());
}

TEST_F(NodeAgentTest, SilentStrangersAreDroppedAndDoNotCount) {
  start(milliseconds(500), 1);
  asio::io_context io;
  std::vector<tcp::socket> strangers;
  for (int i = 0; i < 8; ++i) strangers.push_back(raw_connection(io));
  boost::system::error_code error;
  asio::write(strangers[0], asio::buffer("no TLS at all, not even nearly"), error);
  script_.status = 0;
  EXPECT_TRUE(perform(call()));
  char byte = 0;
  for (tcp::socket& stranger : strangers) {
    while (!error) asio::read(stranger, asio::buffer(&byte, 1), error);
    EXPECT_TRUE(error) << "closed by the agent";
    error = {};
  }
}

TEST_F(NodeAgentTest, NobodyListeningIsSaid) {
  start();
  const NodeAgentCall late = call();
  stop();
  const Result<int> status = perform(late);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("is millrace node-agent running there?"));
}

TEST(NodeAgentWords, RoundTripAndRefuseAnOpenEnd) {
  const std::vector<std::string> words{"orted", "", "a b"};
  EXPECT_EQ(decode_words(encode_words(words)).value(), words);
  EXPECT_FALSE(decode_words("orted"));
  EXPECT_TRUE(decode_words("").value().empty());
}

class SecretFile : public ::testing::Test {
 protected:
  std::string write(const std::string& text, mode_t mode) {
    const std::string path = dir_.write("secret", text);
    chmod(path.c_str(), mode);
    return path;
  }
  static std::string refusal(const std::string& path) {
    const auto secret = read_secret_file(path, "node_agent.secret_file");
    return secret ? "accepted" : secret.error().to_string();
  }
  millrace::test::TempDir dir_;
};

TEST_F(SecretFile, LineEndDoesNotCount) {
  EXPECT_EQ(read_secret_file(write(kSecret + "\r\n", 0600), "f").value(), kSecret);
  EXPECT_EQ(read_secret_file(write(kSecret, 0400), "f").value(), kSecret);
}

TEST_F(SecretFile, OthersMustHaveNoRights) {
  for (const mode_t mode : {0640, 0604, 0620, 0601}) {
    EXPECT_THAT(refusal(write(kSecret, mode)), HasSubstr("chmod 600")) << mode;
  }
}

TEST_F(SecretFile, LengthAndKindAreChecked) {
  EXPECT_THAT(refusal(write(std::string(31, 's') + "\n", 0600)), HasSubstr("holds 31 bytes"));
  EXPECT_THAT(refusal(write(std::string(5000, 's'), 0600)), HasSubstr("are needed"));
  EXPECT_THAT(refusal(dir_.string()), HasSubstr("regular file"));
  EXPECT_THAT(refusal(dir_ / "none"), HasSubstr("node_agent.secret_file"));
}

}  // namespace
}  // namespace millrace::net
