// Which team selects for a group, and where it keeps it: decided by its rows, for blocks by those of the largest group, and
// by the shared memory there is.
#include <algorithm>
#include <vector>

#include "common/launch.h"
#include "facility_location/cuda.cuh"

namespace mrt {

namespace {

constexpr const char* OP = "facility_location";
constexpr int WARP_ROWS = 32;  // up to here a warp owns a group
constexpr int WARPS = WarpTeam::MOST_THREADS / WARP_SIZE;
constexpr int SMALLEST_BLOCK = 64;
constexpr int64_t BLOCKS_IN_FLIGHT = 8;      // of 256 threads, per multiprocessor
constexpr int64_t BLOCK_PARTIALS = 1 << 10;  // more than the declared arrays of a block

struct Plan {
  bool is_warp;
  Place place;
  int threads;  // of a team
  int64_t blocks;
  TeamMemory memory;
};

template <Place PLACE>
TeamMemory memory_of(int above, int largest, int64_t D, int teams) {
  Carver chip(nullptr), outside(nullptr);
  carve<PLACE>(chip, outside, largest, D);
  return {above, largest, teams, chip.used(), outside.used()};
}

// Groups of more rows than `above` and at most `largest`, a block for each.
Plan plan_of_blocks(int64_t num_groups, int above, int largest, int64_t D, int64_t shared, int device) {
  const int warps = num_tiles(largest) * WARP_SIZE;  // one warp per tile, where that is enough
  const int threads = std::min(std::max(warps, SMALLEST_BLOCK), BlockTeam::MOST_THREADS);
  // where a block needs device memory there are only as many as run at a time, and few where it passes groups over
  const int64_t blocks = std::min<int64_t>(num_groups, multiprocessors(OP, device));
  const int64_t many = above < 0 ? num_groups : std::min(num_groups, BLOCKS_IN_FLIGHT * blocks);
  const TeamMemory all = memory_of<Place::on_chip>(above, largest, D, 1);
  if (all.chip <= shared) return {false, Place::on_chip, threads, many, all};
  const TeamMemory pairs = memory_of<Place::rows_outside>(above, largest, D, 1);
  if (pairs.chip <= shared) return {false, Place::rows_outside, threads, blocks, pairs};
  return {false, Place::outside, threads, blocks, memory_of<Place::outside>(above, largest, D, 1)};
}

// One launch, or two where some groups are too large for a warp: each passes over the groups of the other.
std::vector<Plan> plans(int64_t num_groups, int64_t largest_group, int64_t D, int device) {
  const int largest = static_cast<int>(largest_group);
  const int64_t shared = static_cast<int64_t>(largest_shared(OP, device)) - BLOCK_PARTIALS;
  const TeamMemory warps = memory_of<Place::on_chip>(-1, std::min(largest, WARP_ROWS), D, WARPS);
  if (warps.chip * WARPS > shared) return {plan_of_blocks(num_groups, -1, largest, D, shared, device)};
  const Plan small{true, Place::on_chip, WARP_SIZE, (num_groups + WARPS - 1) / WARPS, warps};
  if (largest <= WARP_ROWS) return {small};
  return {small, plan_of_blocks(num_groups, WARP_ROWS, largest, D, shared, device)};
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
  const Plan last = plans(num_groups, largest, D, device).back();  // a warp needs no memory outside the chip
  return last.blocks * last.memory.outside;
}

void select_groups_on_device(const SelectionProblem& problem, const SelectionResult& result,
                             const DeviceScratch& scratch, int64_t largest, const CudaStream& stream) {
  if (problem.num_groups == 0) return;
  const DeviceGuard guard(OP, stream.device);
  for (const Plan& plan : plans(problem.num_groups, largest, problem.x.columns, stream.device)) {
    if (plan.is_warp) {
      launch_as<WarpTeam, Place::on_chip>(plan, problem, result, scratch, stream);
    } else if (plan.place == Place::on_chip) {
      launch_as<BlockTeam, Place::on_chip>(plan, problem, result, scratch, stream);
    } else if (plan.place == Place::rows_outside) {
      launch_as<BlockTeam, Place::rows_outside>(plan, problem, result, scratch, stream);
    } else {
      launch_as<BlockTeam, Place::outside>(plan, problem, result, scratch, stream);
    }
  }
}

}  // namespace mrt
