// facility_location per group on a GPU: one team, a warp or a block, selects for one group from raw features.
//
//   rows     q = rint(x * (radius / |x|)) on the lattice                               tile/lattice.cuh
//   pairs    t[j][i] = min(32767, rint(max(0, base + q_j · q_i) * (unit_i * a_j)))           pairs.cuh
//   greedy   gain[j] = bonus[j] + sum over i of max(t[j][i] - best[i], 0), K times the first of the largest
//
// Reads  x [T, D] from memory once.   Writes what SelectionResult names, equal to the CPU's and the reference's.
// Idea   one launch for all groups of a size class, and a group stays on the chip from its features to its picks. Integer
//        matrix units multiply the rows. Differences of pairs are taken two at a time in one 32-bit subtraction. Outside the
//        chip only rows whose bound can still win are counted.
// Sums   integers: any order gives the same bits. float32 and float64 steps are rounded one by one.
#pragma once

#include "facility_location/pairs.cuh"

namespace mrt {

struct Found {
  int picks, effective;
  int64_t value, bound;
};

__device__ inline uint64_t mix(uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9U;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBU;
  return h ^ (h >> 31);
}

template <class Team, Place PLACE>
class Group {
 public:
  __device__ Group(const Team& team, const SelectionProblem& p, const SelectionResult& r, const Arrays& a, int64_t b,
                   int64_t slot)
      : team_(team),
        p_(p),
        r_(r),
        a_(a),
        b_(b),
        slot_(slot),
        first_(p.offsets[b]),
        k_(static_cast<int>(p.k[b])),
        table_(static_cast<int>(p.offsets[b + 1] - first_), a) {}

  __device__ void select(unsigned long long* bad_row) {
    if (team_.any(quantise(team_, p_.x, first_, table_.N, p_.radius, a_.rows, bad_row))) return;
    const bool is_plain = p_.weight == nullptr && p_.quality == nullptr;
    const double largest = maximum();
    make_pairs(p_.weight, p_.quality, largest);
    open_all(largest);
    const Found found = greedy(0, k_, p_.given != nullptr, true);
    const int64_t random = random_value();
    if (team_.rank() == 0) {
      r_.value[b_] = found.value;
      r_.bound[b_] = found.bound;
      r_.effective[b_] = found.effective;
      r_.random[b_] = random;
    }
    if (!is_plain) make_pairs(nullptr, nullptr, 1.0);
    write(fill(found.picks));
  }

 private:
  // The largest weight times the largest quality; 1 where that is 0.
  __device__ double maximum() const {
    const double product = static_cast<double>(largest_of(p_.weight)) * static_cast<double>(largest_of(p_.quality));
    return product > 0.0 ? product : 1.0;
  }

  __device__ float largest_of(const float* values) const {
    if (values == nullptr) return 1.0F;
    float most = 0.0F;
    for (int i = team_.rank(); i < table_.N; i += team_.size()) most = fmaxf(most, values[first_ + i]);
    return team_.largest(most);
  }

  __device__ void make_pairs(const float* weight, const float* quality, double largest) {
    const double one = rint(__dmul_rn(p_.radius, p_.radius));
    const bool is_shifted = p_.metric == Metric::shifted_cosine;
    const double scale = __dmul_rn(is_shifted ? 2.0 * one : one, largest);
    for (int i = team_.rank(); i < table_.N; i += team_.size()) {
      const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[first_ + i]);
      a_.unit[i] = static_cast<float>(__ddiv_rn(w * STEPS, scale));
      a_.quality[i] = quality == nullptr ? 1.0F : quality[first_ + i];
    }
    team_.sync();
    table_.fill(team_, a_, is_shifted ? static_cast<int>(one) : 0);
  }

  __device__ void open_all(double largest) {
    for (int j = team_.rank(); j < table_.N; j += team_.size()) {
      const double bonus = p_.bonus == nullptr ? 0.0 : static_cast<double>(p_.bonus[first_ + j]);
      a_.bonus[j] = __double2ll_rn(__ddiv_rn(__dmul_rn(bonus, STEPS), largest));
      a_.is_open[j] = 1;
    }
    table_.clear_best(team_, a_);
    team_.sync();
  }

  // Counts the gains of all rows whose bound reaches `bar`; those of others stay what they were, and bounds.
  __device__ void refresh(int64_t bar) {
    const int N = table_.N, lanes = PLACE == Place::outside ? WARP_SIZE : lanes_per_candidate(N, team_.size());
    const int part = team_.rank() % lanes;
    for (int begin = 0; begin < N; begin += team_.size() / lanes) {
      const int j = begin + team_.rank() / lanes;
      const bool counts = j < N && a_.is_open[j] != 0 && (bar == 0 || a_.bounds[j] >= bar);
      int gain = counts ? table_.excess(a_, j, part, lanes) : 0;
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        gain += __shfl_xor_sync(WHOLE_WARP, gain, distance);
      }
      if constexpr (PLACE == Place::outside) __syncwarp();  // the bound was read by all lanes before it is written
      if (j < N && part == 0 && (counts || bar == 0)) a_.bounds[j] = counts ? gain + a_.bonus[j] : 0;
    }
    team_.sync();
  }

  __device__ int64_t exact(int j) const {
    return team_.sum(table_.excess(a_, j, team_.rank(), team_.size())) + a_.bonus[j];
  }

  __device__ Leader leader() const {
    Leader mine{0, INT32_MAX};
    for (int j = team_.rank(); j < table_.N; j += team_.size()) {
      if (a_.bounds[j] > mine.value) mine = {a_.bounds[j], j};
    }
    return team_.leader(mine.value, mine.id);
  }

  // The row with the largest gain, the first of equals. Gains never rise: a row whose bound is below some exact gain
  // cannot win, and is not counted.
  __device__ Leader pick(bool is_exact) {
    const Leader first = leader();
    if (is_exact || first.value <= 0) return first;
    refresh(exact(first.id));
    return leader();
  }

  // Counting instead of sorting: N^2 comparisons, a few times per group.
  __device__ int64_t sum_of_largest(int k) const {
    int64_t sum = 0;
    for (int i = team_.rank(); i < table_.N; i += team_.size()) {
      const int64_t mine = a_.bounds[i];
      int larger = 0;
      for (int j = 0; j < table_.N && larger < k; ++j) {
        larger += a_.bounds[j] > mine || (a_.bounds[j] == mine && j < i) ? 1 : 0;
      }
      sum += larger < k ? mine : 0;
    }
    return team_.sum(sum);
  }

  // Up to k picks behind those that there are; `is_counted`: their gains are results.
  __device__ Found greedy(int from, int k, bool is_given, bool is_counted) {
    Found found{0, 0, 0, INT64_MAX};
    for (int step = 0;; ++step) {
      const bool is_checked = step == k || (step & (step - 1)) == 0;
      const bool is_exact = is_checked || PLACE != Place::outside;
      if (is_exact) refresh(0);
      if (is_checked) found.bound = min(found.bound, found.value + sum_of_largest(k));
      if (step == k) return found;
      const Leader next = is_given ? given(step) : pick(is_exact);
      if (!is_given && next.value <= 0) {
        found.bound = min(found.bound, found.value);
        return found;
      }
      found.value += next.value;
      found.effective += next.value > 0 ? 1 : 0;
      ++found.picks;
      if (team_.rank() == 0) {
        a_.picks[from + step] = next.id;
        a_.is_open[next.id] = 0;
        a_.bounds[next.id] = 0;
        if (is_counted) r_.gains[slot_ + step] = next.value;
      }
      table_.take(team_, a_, next.id);
      team_.sync();
    }
  }

  __device__ Leader given(int step) const {
    const int j = static_cast<int>(p_.given[slot_ + step] - p_.first_row - first_);
    return {exact(j), j};
  }

  __device__ void make_keys(uint64_t draw) {
    constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15U;
    const uint64_t stream = mix(mix(p_.seed + (draw + 1) * GOLDEN) ^ mix(static_cast<uint64_t>(p_.group_key[b_])));
    for (int i = team_.rank(); i < table_.N; i += team_.size()) {
      a_.keys[i] = static_cast<int64_t>(mix(stream + static_cast<uint64_t>(i + 1) * GOLDEN));
    }
  }

  // How many rows of those that count have a smaller key. Keys of a group differ.
  __device__ int smaller(int i, bool open_only) const {
    int count = 0;
    for (int j = 0; j < table_.N; ++j) count += a_.keys[j] < a_.keys[i] && !(open_only && a_.is_open[j] == 0) ? 1 : 0;
    return count;
  }

  // Windows of one random order (cyclic): each of them is a uniform draw of k rows.
  __device__ int64_t random_value() {
    const int N = table_.N;
    if (k_ == 0) return 0;
    make_keys(CHANCE);
    team_.sync();
    for (int i = team_.rank(); i < N; i += team_.size()) a_.order[smaller(i, false)] = i;
    team_.sync();
    int64_t total = 0;
    for (int item = team_.rank(); item < RANDOM_DRAWS * table_.vectors; item += team_.size()) {
      const int draw = item / table_.vectors;
      total += table_.cover(a_, draw * N / RANDOM_DRAWS, k_, item % table_.vectors);
    }
    for (int item = team_.rank(); item < RANDOM_DRAWS * k_; item += team_.size()) {
      total += a_.bonus[a_.order[(item / k_ * N / RANDOM_DRAWS + item % k_) % N]];
    }
    return team_.sum(total);
  }

  // What follows the picks once no candidate gains; the table holds plain pairs by now. Returns how many ids there are.
  __device__ int fill(int kept) {
    if (kept == k_ || p_.fill == Fill::none) return kept;
    for (int n = kept + team_.rank(); n < k_; n += team_.size()) r_.gains[slot_ + n] = 0;
    if (p_.fill == Fill::coverage) kept += cover_more(kept);
    if (p_.fill == Fill::index) {
      for (int i = team_.rank(); i < table_.N; i += team_.size()) a_.keys[i] = i;
    } else {
      make_keys(KEPT);
    }
    team_.sync();
    for (int i = team_.rank(); i < table_.N; i += team_.size()) {
      const int place = a_.is_open[i] != 0 ? kept + smaller(i, true) : k_;
      if (place < k_) a_.picks[place] = i;
    }
    team_.sync();
    for (int n = kept + team_.rank(); n < k_; n += team_.size()) a_.is_open[a_.picks[n]] = 0;
    team_.sync();
    return k_;
  }

  // Greedy on the unweighted objective, from the picks there are.
  __device__ int cover_more(int kept) {
    for (int j = team_.rank(); j < table_.N; j += team_.size()) a_.bonus[j] = 0;
    table_.clear_best(team_, a_);
    team_.sync();
    for (int n = 0; n < kept; ++n) table_.take(team_, a_, a_.picks[n]);
    team_.sync();
    return greedy(kept, k_ - kept, false, false).picks;
  }

  // The kept row that covers row i most, the first of equals; -1 where nothing does. A kept row owns itself.
  __device__ int owner_of(int i, int kept) const {
    if (a_.is_open[i] == 0) return i;
    int most = 0, owner = -1;
    for (int n = 0; n < kept; ++n) {
      const int j = a_.picks[n], t = table_.at(a_, j, i);
      if (t > most || (t == most && t > 0 && j < owner)) {
        most = t;
        owner = j;
      }
    }
    return owner;
  }

  __device__ void write(int kept) {
    const int64_t base = p_.first_row + first_;
    for (int i = team_.rank(); i < table_.N; i += team_.size()) a_.owned[i] = 0;
    team_.sync();
    for (int i = team_.rank(); i < table_.N; i += team_.size()) {
      const int owner = owner_of(i, kept);
      r_.owner[first_ + i] = owner < 0 ? -1 : base + owner;
      if (owner >= 0) atomicAdd(&a_.owned[owner], 1);
    }
    team_.sync();
    for (int n = team_.rank(); n < kept; n += team_.size()) {
      const double owned = static_cast<double>(a_.owned[a_.picks[n]]);
      r_.ids[slot_ + n] = base + a_.picks[n];
      r_.share[slot_ + n] = static_cast<float>(__ddiv_rn(owned, static_cast<double>(table_.N)));
    }
    if (team_.rank() == 0) r_.kept[b_] = kept;
    team_.sync();
  }

  const Team& team_;
  const SelectionProblem& p_;
  const SelectionResult& r_;
  const Arrays& a_;
  const int64_t b_, slot_, first_;
  const int k_;
  const Table table_;
};

// Blocks that a multiprocessor holds at least: the compiler must leave them registers, 128 a thread for two of 256 threads,
// 168 for three of four warps, which spill at 128.
template <class Team>
constexpr int blocks_per_processor(Place place) {
  return place != Place::on_chip ? 1 : Team::MOST_THREADS == WarpTeam::MOST_THREADS ? 3 : 2;
}

// What a team has to work in, and how many teams there are.
struct TeamMemory {
  int above, largest;     // rows of the groups of this launch: more than `above`, at most `largest`
  int teams;              // per block
  int64_t chip, outside;  // bytes of shared and of device memory per team
};

template <class Team, Place PLACE>
__global__ void __launch_bounds__(Team::MOST_THREADS, blocks_per_processor<Team>(PLACE))
    select_groups_kernel(SelectionProblem p, SelectionResult r, DeviceScratch scratch, TeamMemory memory) {
  const Team team;
  const int index = static_cast<int>(threadIdx.x) / team.size();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * memory.teams + index;
  Carver chip(dynamic_shared<unsigned char>() + index * memory.chip);
  Carver outside(scratch.workspace + first * memory.outside);
  const Arrays arrays = carve<PLACE>(chip, outside, memory.largest, p.x.columns);
  for (int64_t b = first; b < p.num_groups; b += static_cast<int64_t>(gridDim.x) * memory.teams) {
    const int64_t rows = p.offsets[b + 1] - p.offsets[b];
    if (rows <= memory.above || rows > memory.largest) continue;
    Group<Team, PLACE>(team, p, r, arrays, b, scratch.slots[b]).select(scratch.bad_row);
  }
}

}  // namespace mrt
