// The command line with which Open MPI asks for its daemon on another node.
//
// mpirun's rsh launcher hands its launch agent the words of a shell command, for instance
//   orted --daemonize -mca ess "env" -mca ess_base_jobid "325976064" ... --mca btl "self,vader,tcp"
// A node agent runs no shell. It takes the words apart, accepts this one program with parameters
// from a list, each with a form of its own, and builds the daemon's arguments anew. Everything else
// is refused: other programs, paths, environment assignments (mpirun's --prefix), parameters that
// load libraries, read files or start programs.
//
// Measured with Open MPI 4.1.4: words may begin with a space, values stand in double quotes, and
// where the leader's login shell is a plain sh the whole is wrapped in
//   ( test ! -r ./.profile || . ./.profile; ... )
// which asks for nothing a daemon needs, and is dropped.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "config/result.h"

namespace millrace::net {

struct OrtedCommand {
  // Accepted MCA parameters in the order given, without those that belong to the leader alone: its
  // launcher and its folders.
  std::vector<std::pair<std::string, std::string>> parameters;

  // The daemon's arguments. Session files and shared-memory segments go into `scratch` of this
  // node. `fork_agent` (a command; empty: none) is put before every program that the daemon starts.
  // The daemon stays in the foreground, so that its end can be seen.
  std::vector<std::string> arguments(const std::string& scratch,
                                     const std::string& fork_agent) const;
  // The leader's host name; empty where the list of nodes abbreviates it.
  std::string leader() const;
  // The daemon's number in its cell (1, 2, ...), for logs.
  std::string number() const;
};

// kInvalidArgument with the refused word in the message.
Result<OrtedCommand> parse_orted_command(std::span<const std::string> words);

}  // namespace millrace::net
