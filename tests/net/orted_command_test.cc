#include "net/orted_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace millrace::net {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

// What Open MPI 4.1.4 handed to a launch agent, without the host name in front.
Words recorded() {
  return {" orted",
          "--daemonize",
          "-mca",
          "ess",
          "\"env\"",
          "-mca",
          "ess_base_jobid",
          "\"456654848\"",
          "-mca",
          "ess_base_vpid",
          "1",
          "-mca",
          "ess_base_num_procs",
          "\"2\"",
          "-mca",
          "orte_node_regex",
          "\"vm,[2:10].77.0.2@0(2)\"",
          "-mca",
          "orte_hnp_uri",
          "\"456654848.0;tcp://10.77.0.1:51517\"",
          "--mca",
          "btl",
          "\"self,vader,tcp\"",
          "--mca",
          "orte_tmpdir_base",
          "\"/dev/shm/scratch\"",
          "--mca",
          "plm_rsh_agent",
          "\"/usr/bin/millrace agent-exec --config /tmp/c\"",
          "--mca",
          "btl_tcp_if_include",
          "\"10.77.0.0/24\"",
          "-mca",
          "plm",
          "\"rsh\"",
          "-mca",
          "pmix",
          "\"^s1,s2,cray,isolated\""};
}

Words with(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

Words replaced(Words words, const std::string& from, const std::string& to) {
  std::replace(words.begin(), words.end(), from, to);
  return words;
}

std::string refusal(const Words& words) {
  const auto command = parse_orted_command(words);
  return command ? "accepted" : command.error().to_string();
}

TEST(OrtedCommand, RebuildsWhatOpenMpiAsksFor) {
  const auto command = parse_orted_command(recorded());
  ASSERT_TRUE(command) << command.error().to_string();
  const Words expected{"orted",
                       "--mca",
                       "ess",
                       "env",
                       "--mca",
                       "ess_base_jobid",
                       "456654848",
                       "--mca",
                       "ess_base_vpid",
                       "1",
                       "--mca",
                       "ess_base_num_procs",
                       "2",
                       "--mca",
                       "orte_node_regex",
                       "vm,[2:10].77.0.2@0(2)",
                       "--mca",
                       "orte_hnp_uri",
                       "456654848.0;tcp://10.77.0.1:51517",
                       "--mca",
                       "btl",
                       "self,vader,tcp",
                       "--mca",
                       "btl_tcp_if_include",
                       "10.77.0.0/24",
                       "--mca",
                       "pmix",
                       "^s1,s2,cray,isolated",
                       "--mca",
                       "orte_tmpdir_base",
                       "/mine",
                       "--mca",
                       "btl_vader_backing_directory",
                       "/mine",
                       "--mca",
                       "orte_fork_agent",
                       "millrace rank-exec"};
  EXPECT_EQ(command->arguments("/mine", "millrace rank-exec"), expected);
  EXPECT_EQ(command->number(), "1");
  EXPECT_EQ(command->leader(), "vm");
}

TEST(OrtedCommand, TakesTheWrappingOfAPlainShellAway) {
  Words words{"(", "test", "!", "-r", "./.profile", "||", ".", "./.profile;"};
  words = with(words, recorded());
  EXPECT_THAT(refusal(words), HasSubstr("not '('")) << "without the closing bracket";
  words.emplace_back(")");
  EXPECT_EQ(refusal(words), "accepted");
  words[4] = "./.bashrc";
  EXPECT_THAT(refusal(words), HasSubstr("not '('"));
}

TEST(OrtedCommand, AnAbbreviatedNodeListNamesNoLeader) {
  const auto command =
      parse_orted_command(replaced(recorded(), "\"vm,[2:10].77.0.2@0(2)\"", "node[1:1-4]@0(4)"));
  ASSERT_TRUE(command);
  EXPECT_EQ(command->leader(), "");
}

TEST(OrtedCommand, SeveralAddressesOfTheLeader) {
  EXPECT_EQ(refusal(replaced(recorded(), "\"456654848.0;tcp://10.77.0.1:51517\"",
                             "1.0;tcp://10.0.0.1,192.168.0.1:5;tcp6://[fe80::1]:6")),
            "accepted");
}

TEST(OrtedCommand, OtherProgramsAreRefused) {
  for (const char* program :
       {"sh", "/usr/bin/orted", "./orted", "orted;", "PATH=/tmp", "orted --mca", "$(orted)"}) {
    EXPECT_THAT(refusal(replaced(recorded(), " orted", program)), HasSubstr("only Open MPI's"))
        << program;
  }
  // The form that mpirun's --prefix takes.
  EXPECT_THAT(refusal(replaced(recorded(), " orted",
                               "  PATH=/usr/bin:$PATH ; export PATH ;   /usr/bin/orted")),
              HasSubstr("only Open MPI's"));
  EXPECT_THAT(refusal({}), HasSubstr("empty"));
  EXPECT_THAT(refusal({" ", ""}), HasSubstr("empty"));
}

TEST(OrtedCommand, ParametersThatLoadReadOrRunAreRefused) {
  for (const char* name :
       {"orte_fork_agent", "orte_launch_agent", "mca_base_component_path", "mca_component_path",
        "mca_base_param_files", "plm_rsh_args", "rmaps_rank_file_path", "mca_base_env_list"}) {
    EXPECT_THAT(refusal(with(recorded(), {"--mca", name, "x"})), HasSubstr(name)) << name;
  }
  for (const char* option : {"--spin", "-x", "--prefix", ";", "&&", "|", "--gmca", "-tune"}) {
    EXPECT_THAT(refusal(with(recorded(), {option, "a", "b"})), HasSubstr("is not accepted"))
        << option;
  }
}

TEST(OrtedCommand, ValuesMustHaveTheirForm) {
  const auto bad = [](const std::string& from, const std::string& to) {
    EXPECT_THAT(refusal(replaced(recorded(), from, to)), HasSubstr("is no value for")) << to;
  };
  bad("\"env\"", "singleton");
  bad("\"456654848\"", "4566x");
  bad("\"456654848\"", "12345678901");
  bad("\"2\"", "$(id)");
  bad("\"2\"", "");
  bad("\"self,vader,tcp\"", "self,`id`");
  bad("\"self,vader,tcp\"", "../x");
  bad("\"10.77.0.0/24\"", "10.0.0.0/8;id");
  bad("\"vm,[2:10].77.0.2@0(2)\"", "a b");
  for (const char* contact : {"1.0", "1;tcp://a:1", "x.0;tcp://a:1", "1.0;file:/etc/passwd",
                              "1.0;tcp://", "1.0;tcp://a:1;", "1.0;tcp://a:1 b", ";", "."}) {
    bad("\"456654848.0;tcp://10.77.0.1:51517\"", contact);
  }
}

TEST(OrtedCommand, WhatIsMissingTwiceOrTooLongIsNamed) {
  Words words = recorded();
  words.erase(words.begin() + 2, words.begin() + 5);
  EXPECT_THAT(refusal(words), HasSubstr("ess is missing"));
  EXPECT_THAT(refusal(with(recorded(), {"--mca", "btl", "tcp"})), HasSubstr("btl is given twice"));
  EXPECT_THAT(refusal(with(recorded(), {"--mca", "btl"})), HasSubstr("no value"));
  EXPECT_THAT(refusal(with(recorded(), {std::string(40'000, 'a')})), HasSubstr("too long"));
  EXPECT_THAT(refusal(Words(300, "orted")), HasSubstr("too long"));
  EXPECT_THAT(refusal({"o\nrted\x1b"}), HasSubstr("'o?rted?'")) << "safe to log";
}

// Whatever is done to the words, what comes out names only parameters of the list.
TEST(OrtedCommand, MutatedCommandsStayWithinTheList) {
  std::mt19937 random(7);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    Words words = recorded();
    for (int changes = 0; changes < 2; ++changes) {
      std::string& word = words[random() % words.size()];
      const auto c = static_cast<char>(random() % 256);
      if (word.empty() || random() % 3 == 0) {
        word += c;
      } else {
        word[random() % word.size()] = c;
      }
    }
    const auto command = parse_orted_command(words);
    if (!command) continue;
    ++accepted;
    for (const std::string& argument : command->arguments("/s", "")) {
      EXPECT_EQ(argument.find_first_of(" $`\"'\\|&<>*?~\n\0"), std::string::npos) << argument;
    }
  }
  EXPECT_GT(accepted, 100);  // or nothing was tried
}

}  // namespace
}  // namespace millrace::net
