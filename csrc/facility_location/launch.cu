// Which team selects for a group, and where it keeps it: decided by the largest group and by the shared memory there is.
#include <algorithm>

#include "common/launch.h"
#include "facility_location/cuda.cuh"

namespace mrt {

namespace {

constexpr const char* OP = "facility_location";
constexpr int WARP_ROWS = 32;  // up to here a warp owns a group
constexpr int WARPS = WarpTeam::MOST_THREADS / WARP_SIZE;
constexpr int SMALLEST_BLOCK = 64;
constexpr int64_t BLOCK_PARTIALS = 1 << 10;  // more than the declared arrays of a block

struct Plan {
  bool is_warp;
  Place place;
  int threads;  // of a team
  int64_t blocks;
  TeamMemory memory;
};

template <Place PLACE>
TeamMemory memory_of(int largest, int64_t D, int threads, int teams) {
  Carver chip(nullptr), outside(nullptr);
  carve<PLACE>(chip, outside, largest, D, threads);
  return {largest, teams, chip.used(), outside.used()};
}

Plan plan(int64_t num_groups, int64_t largest_group, int64_t D, int device) {
  const int largest = static_cast<int>(largest_group);
  const int64_t shared = static_cast<int64_t>(largest_shared(OP, device)) - BLOCK_PARTIALS;
  if (largest <= WARP_ROWS) {
    const TeamMemory memory = memory_of<Place::on_chip>(largest, D, WARP_SIZE, WARPS);
    if (memory.chip * WARPS <= shared) {
      return {true, Place::on_chip, WARP_SIZE, (num_groups + WARPS - 1) / WARPS, memory};
    }
  }
  const int tiles = ceil_div(num_tiles(largest), WARP_SIZE) * WARP_SIZE;  // one thread per tile, where that is enough
  const int threads = std::min(std::max(tiles, SMALLEST_BLOCK), BlockTeam::MOST_THREADS);
  // where a block needs device memory there are only as many as run at a time
  const int64_t blocks = std::min<int64_t>(num_groups, multiprocessors(OP, device));
  const TeamMemory all = memory_of<Place::on_chip>(largest, D, threads, 1);
  if (all.chip <= shared) return {false, Place::on_chip, threads, num_groups, all};
  const TeamMemory pairs = memory_of<Place::rows_outside>(largest, D, threads, 1);
  if (pairs.chip <= shared) return {false, Place::rows_outside, threads, blocks, pairs};
  return {false, Place::outside, threads, blocks, memory_of<Place::outside>(largest, D, threads, 1)};
}

template <class Team, Place PLACE>
void launch_as(const Plan& plan, const SelectionProblem& problem, const SelectionResult& result,
               const DeviceScratch& scratch, const CudaStream& stream) {
  const int teams = plan.memory.teams;
  const LaunchShape shape{dim3(static_cast<unsigned>(plan.blocks)), dim3(static_cast<unsigned>(plan.threads * teams)),
                          static_cast<size_t>(plan.memory.chip * teams)};
  launch(OP, select_groups_kernel<Team, PLACE>, shape, stream, problem, result, scratch, plan.memory);
}

}  // namespace

int64_t select_groups_workspace(int64_t num_groups, int64_t largest, int64_t D, int device) {
  const Plan found = plan(num_groups, largest, D, device);
  return found.blocks * found.memory.outside;
}

void select_groups_on_device(const SelectionProblem& problem, const SelectionResult& result,
                             const DeviceScratch& scratch, int64_t largest, const CudaStream& stream) {
  if (problem.num_groups == 0) return;
  const DeviceGuard guard(OP, stream.device);
  const Plan found = plan(problem.num_groups, largest, problem.x.columns, stream.device);
  if (found.is_warp) {
    launch_as<WarpTeam, Place::on_chip>(found, problem, result, scratch, stream);
  } else if (found.place == Place::on_chip) {
    launch_as<BlockTeam, Place::on_chip>(found, problem, result, scratch, stream);
  } else if (found.place == Place::rows_outside) {
    launch_as<BlockTeam, Place::rows_outside>(found, problem, result, scratch, stream);
  } else {
    launch_as<BlockTeam, Place::outside>(found, problem, result, scratch, stream);
  }
}

}  // namespace mrt
