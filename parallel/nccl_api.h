// The NCCL calls that nccl_communicator.h makes, as a table: filled from libnccl.so.2 at run time,
// so that a binary starts on machines without it, and by tests with calls that fail or hang.
//
// Result codes and types are NCCL's own (nccl_api.cc checks them against nccl.h).
#pragma once

#include <cstddef>

#include "config/result.h"

struct ncclComm;

namespace millrace::parallel {

inline constexpr int kNcclSuccess = 0;
inline constexpr int kNcclSystemError = 2;
inline constexpr int kNcclInternalError = 3;
inline constexpr int kNcclRemoteError = 6;
inline constexpr int kNcclInProgress = 7;

struct NcclApi {
  using Comm = ncclComm*;
  struct UniqueId {
    char internal[128] = {};
  };

  int version = 0;  // 22809 for 2.28.9

  int (*get_unique_id)(UniqueId* id) = nullptr;
  // Blocks until all ranks are there.
  int (*comm_init_rank)(Comm* comm, int ranks, const UniqueId& id, int rank) = nullptr;
  int (*comm_destroy)(Comm comm) = nullptr;
  // Ends the kernels of the communicator that wait for peers. From any thread.
  int (*comm_abort)(Comm comm) = nullptr;
  int (*comm_get_async_error)(Comm comm, int* error) = nullptr;
  const char* (*get_error_string)(int code) = nullptr;
  const char* (*get_last_error)(Comm comm) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*send)(const void* data, std::size_t bytes, int peer, Comm comm, void* stream) = nullptr;
  int (*recv)(void* data, std::size_t bytes, int peer, Comm comm, void* stream) = nullptr;
  int (*all_gather)(const void* mine, void* all, std::size_t bytes, Comm comm,
                    void* stream) = nullptr;
  // Sums bf16 values; `count` of them for each rank.
  int (*reduce_scatter_bf16)(const void* in, void* out, std::size_t count, Comm comm,
                             void* stream) = nullptr;
  // NCCL 2.28 and later; null before.
  int (*all_to_all)(const void* send, void* recv, std::size_t bytes_per_peer, Comm comm,
                    void* stream) = nullptr;
};

// Loads the library at the first call. kUnsupported says what is missing: the header when this was
// built, or the library here.
Result<const NcclApi*> load_nccl();

}  // namespace millrace::parallel
