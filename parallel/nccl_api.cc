#include "parallel/nccl_api.h"

#include <dlfcn.h>
#include <fmt/format.h>

#if defined(MILLRACE_NCCL)
#include <nccl.h>
#endif

namespace millrace::parallel {

#if defined(MILLRACE_NCCL)

namespace {

static_assert(kNcclSuccess == ncclSuccess && kNcclSystemError == ncclSystemError &&
              kNcclInternalError == ncclInternalError && kNcclRemoteError == ncclRemoteError &&
              kNcclInProgress == ncclInProgress);
static_assert(sizeof(NcclApi::UniqueId) == sizeof(ncclUniqueId));

// The library's functions with the types of the header.
struct Library {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRank) comm_init_rank;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclReduceScatter) reduce_scatter;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
  decltype(&ncclAlltoAll) all_to_all;
#endif
};

Library library;

// Finds one function; returns false and names it when the library lacks it.
template <class F>
bool find(void* handle, const char* name, F& function, std::string& missing) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  if (function == nullptr) missing = name;
  return function != nullptr;
}

bool find_all(void* handle, Library& l, std::string& missing) {
  return find(handle, "ncclGetVersion", l.get_version, missing) &&
         find(handle, "ncclGetUniqueId", l.get_unique_id, missing) &&
         find(handle, "ncclCommInitRank", l.comm_init_rank, missing) &&
         find(handle, "ncclCommDestroy", l.comm_destroy, missing) &&
         find(handle, "ncclCommAbort", l.comm_abort, missing) &&
         find(handle, "ncclCommGetAsyncError", l.comm_get_async_error, missing) &&
         find(handle, "ncclGetErrorString", l.get_error_string, missing) &&
         find(handle, "ncclGetLastError", l.get_last_error, missing) &&
         find(handle, "ncclGroupStart", l.group_start, missing) &&
         find(handle, "ncclGroupEnd", l.group_end, missing) &&
         find(handle, "ncclSend", l.send, missing) && find(handle, "ncclRecv", l.recv, missing) &&
         find(handle, "ncclAllGather", l.all_gather, missing) &&
         find(handle, "ncclReduceScatter", l.reduce_scatter, missing);
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

NcclApi table() {
  NcclApi api;
  api.get_unique_id = [](NcclApi::UniqueId* id) -> int {
    return library.get_unique_id(reinterpret_cast<ncclUniqueId*>(id));
  };
  api.comm_init_rank = [](NcclApi::Comm* comm, int ranks, const NcclApi::UniqueId& id,
                          int rank) -> int {
    return library.comm_init_rank(comm, ranks, reinterpret_cast<const ncclUniqueId&>(id), rank);
  };
  api.comm_destroy = [](NcclApi::Comm comm) -> int { return library.comm_destroy(comm); };
  api.comm_abort = [](NcclApi::Comm comm) -> int { return library.comm_abort(comm); };
  api.comm_get_async_error = [](NcclApi::Comm comm, int* error) -> int {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = library.comm_get_async_error(comm, &state);
    *error = state;
    return asked;
  };
  api.get_error_string = [](int code) {
    return library.get_error_string(static_cast<ncclResult_t>(code));
  };
  api.get_last_error = [](NcclApi::Comm comm) { return library.get_last_error(comm); };
  api.group_start = []() -> int { return library.group_start(); };
  api.group_end = []() -> int { return library.group_end(); };
  api.send = [](const void* data, std::size_t bytes, int peer, NcclApi::Comm comm,
                void* stream) -> int {
    return library.send(data, bytes, ncclInt8, peer, comm, stream_of(stream));
  };
  api.recv = [](void* data, std::size_t bytes, int peer, NcclApi::Comm comm, void* stream) -> int {
    return library.recv(data, bytes, ncclInt8, peer, comm, stream_of(stream));
  };
  api.all_gather = [](const void* mine, void* all, std::size_t bytes, NcclApi::Comm comm,
                      void* stream) -> int {
    return library.all_gather(mine, all, bytes, ncclInt8, comm, stream_of(stream));
  };
  api.reduce_scatter_bf16 = [](const void* in, void* out, std::size_t count, NcclApi::Comm comm,
                               void* stream) -> int {
    return library.reduce_scatter(in, out, count, ncclBfloat16, ncclSum, comm, stream_of(stream));
  };
  return api;
}

Result<NcclApi> open_library() {
  void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return Error{ErrorCode::kUnsupported, "device.transport",
                 fmt::format("NCCL is not here ({}); install it or set device.transport to staged",
                             dlerror())};
  }
  std::string missing;
  if (!find_all(handle, library, missing)) {
    return Error{ErrorCode::kUnsupported, "device.transport",
                 fmt::format("libnccl.so.2 has no {}; install NCCL 2.18 or later", missing)};
  }
  NcclApi api = table();
  library.get_version(&api.version);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
  if (find(handle, "ncclAlltoAll", library.all_to_all, missing)) {
    api.all_to_all = [](const void* send, void* recv, std::size_t bytes_per_peer,
                        NcclApi::Comm comm, void* stream) -> int {
      return library.all_to_all(send, recv, bytes_per_peer, ncclInt8, comm, stream_of(stream));
    };
  }
#endif
  return api;
}

}  // namespace

Result<const NcclApi*> load_nccl() {
  static const Result<NcclApi> api = open_library();
  if (!api) return api.error();
  return &*api;
}

#else

Result<const NcclApi*> load_nccl() {
  return Error{ErrorCode::kUnsupported, "device.transport",
               "this binary was built without NCCL; set device.transport to staged"};
}

#endif

}  // namespace millrace::parallel
