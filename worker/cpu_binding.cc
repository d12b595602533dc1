#include "worker/cpu_binding.h"

#include <fmt/format.h>
#include <hwloc.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>

#include "config/check.h"

namespace millrace {

namespace {

struct FreeBitmap {
  void operator()(hwloc_bitmap_s* bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

Bitmap parse(const std::string& list) {
  Bitmap bitmap(hwloc_bitmap_alloc());
  CHECK(hwloc_bitmap_list_sscanf(bitmap.get(), list.c_str()) == 0, "list={}", list);
  return bitmap;
}

std::string list_of(hwloc_const_bitmap_t bitmap) {
  std::string text(static_cast<std::size_t>(hwloc_bitmap_list_snprintf(nullptr, 0, bitmap)), ' ');
  hwloc_bitmap_list_snprintf(text.data(), text.size() + 1, bitmap);
  return text;
}

// The cores below `roots` in `parts` even parts, in order.
std::vector<Bitmap> divide(const Topology& topology, std::vector<hwloc_obj_t> roots, int parts) {
  std::vector<hwloc_cpuset_t> raw(static_cast<std::size_t>(parts));
  hwloc_distrib(topology.get(), roots.data(), static_cast<unsigned>(roots.size()), raw.data(),
                static_cast<unsigned>(parts), INT_MAX, 0);
  std::vector<Bitmap> result;
  for (const hwloc_cpuset_t set : raw) result.emplace_back(set);
  return result;
}

std::vector<hwloc_obj_t> largest_inside(const Topology& topology, const Bitmap& cores) {
  const int most = hwloc_bitmap_weight(cores.get());
  std::vector<hwloc_obj_t> objects(static_cast<std::size_t>(most));
  const int found =
      hwloc_get_largest_objs_inside_cpuset(topology.get(), cores.get(), objects.data(), most);
  CHECK(found > 0, "no object inside cores {}", list_of(cores.get()));
  objects.resize(static_cast<std::size_t>(found));
  return objects;
}

BindThreads settle(const Topology& topology, BindThreads choice) {
  if (choice != BindThreads::kAuto) return choice;
  const int nodes = hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_NUMANODE);
  return nodes > 1 ? BindThreads::kNode : BindThreads::kNone;
}

Result<void> bind_cores(const Topology& topology, const std::string& cores) {
  if (hwloc_set_cpubind(topology.get(), parse(cores).get(), HWLOC_CPUBIND_THREAD) == 0) return {};
  return Error{ErrorCode::kUnsupported, "grid.bind_threads",
               fmt::format("the system refuses to bind a thread to cores {} ({}); use none", cores,
                           std::strerror(errno))};
}

}  // namespace

CpuBinding plan_cpu_binding(const Topology& topology, BindThreads choice,
                            const WorkerPlace& place) {
  CHECK(place.index >= 0 && place.index < place.workers && place.threads > 0,
        "index={} workers={} threads={}", place.index, place.workers, place.threads);
  choice = settle(topology, choice);
  CpuBinding binding;
  if (choice == BindThreads::kNone) return binding;
  const std::vector<Bitmap> shares =
      divide(topology, {hwloc_get_root_obj(topology.get())}, place.workers);
  const Bitmap& share = shares[static_cast<std::size_t>(place.index)];

  const Bitmap nodes(hwloc_bitmap_alloc());
  hwloc_cpuset_to_nodeset(topology.get(), share.get(), nodes.get());
  binding.nodes = list_of(nodes.get());
  if (choice == BindThreads::kNode) {
    const Bitmap near(hwloc_bitmap_alloc());
    hwloc_cpuset_from_nodeset(topology.get(), near.get(), nodes.get());
    binding.cores = list_of(near.get());
    return binding;
  }
  binding.cores = list_of(share.get());
  for (const Bitmap& cores : divide(topology, largest_inside(topology, share), place.threads)) {
    binding.thread_cores.push_back(list_of(cores.get()));
  }
  return binding;
}

Result<std::string> bind_worker(const Topology& topology, const CpuBinding& binding) {
  if (binding.cores.empty()) return std::string();
  if (auto bound = bind_cores(topology, binding.cores); !bound) return bound.error();
  const Bitmap nodes = parse(binding.nodes);
  // One node is only preferred: a full one must not end the process.
  const auto policy =
      hwloc_bitmap_weight(nodes.get()) > 1 ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_BIND;
  if (hwloc_set_membind(topology.get(), nodes.get(), policy,
                        HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET) == 0) {
    return std::string();
  }
  return fmt::format("memory is not placed: {}", std::strerror(errno));
}

Result<void> bind_thread(const Topology& topology, const CpuBinding& binding, int thread) {
  if (binding.thread_cores.empty()) return {};
  return bind_cores(topology, binding.thread_cores[static_cast<std::size_t>(thread)]);
}

}  // namespace millrace
