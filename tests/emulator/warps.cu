// Shuffles, votes, matches and reductions of a warp, whole and in parts.
#include <algorithm>

#include "check.h"

namespace {

enum Shuffle { direct, across, down, up };

struct Tables {
  int width[4], step[4];
};
constexpr Tables TABLES{{32, 16, 8, 1}, {0, 1, 5, 16}};  // 16: beyond the narrow segments
constexpr int VARIANTS = 4 * 4 * 4;                      // kinds, widths, steps

// All in one launch, for starting a thread takes ThreadSanitizer half a millisecond.

template <class T>
__global__ void shuffle(T* out, Tables tables) {
  const int thread = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(1000 + thread);
  for (int variant = 0; variant < VARIANTS; ++variant) {
    const int kind = variant / 16, width = tables.width[variant / 4 % 4], step = tables.step[variant % 4];
    T got{};
    if (kind == direct) got = __shfl_sync(ALL, value, thread * 3 + step, width);
    if (kind == across) got = __shfl_xor_sync(ALL, value, step, width);
    if (kind == down) got = __shfl_down_sync(ALL, value, static_cast<unsigned>(step), width);
    if (kind == up) got = __shfl_up_sync(ALL, value, static_cast<unsigned>(step), width);
    out[variant * 2 * WARP + thread] = got;
  }
}

// Which lane a shuffle reads, in CUDA's words: out of the segment means the own one.
int source(int kind, int lane, int step, int width) {
  const int first = lane / width * width;
  if (kind == direct) return first + (lane * 3 + step) % width;
  const int other = kind == across ? lane ^ step : kind == down ? lane + step : lane - step;
  const bool is_out = kind == up ? other < first : other >= first + width;
  return is_out ? lane : other;
}

template <class T>
void test_shuffles(const char* type) {
  Shared<T> out(VARIANTS * 2 * WARP);
  run(shuffle<T>, {dim3(1), dim3(2 * WARP)}, out.data(), TABLES);
  expect_all(type, out, [](size_t i) {
    const size_t variant = i / (2 * WARP);
    const int thread = static_cast<int>(i % (2 * WARP)), lane = thread % WARP;
    return 1000 + thread - lane +
           source(static_cast<int>(variant / 16), lane, TABLES.step[variant % 4], TABLES.width[variant / 4 % 4]);
  });
}

__global__ void vote(unsigned* out) {
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const bool is_third = lane % 3 == 0;
  unsigned* mine = out + threadIdx.x * 8;
  mine[0] = __ballot_sync(ALL, is_third);
  mine[1] = static_cast<unsigned>(__any_sync(ALL, warp == 1 && lane == 7));
  mine[2] = static_cast<unsigned>(__all_sync(ALL, warp == 0 || lane != 7));
  mine[3] = __match_any_sync(ALL, static_cast<int>(lane % 3));
  mine[4] = __match_any_sync(ALL, lane < 4 ? 1ULL << 40 : 1ULL << 41);
  mine[5] = __activemask() >> lane & 1;
  if (lane < 20) {  // two parts of a warp meet each for itself
    mine[6] = __ballot_sync((1U << 20) - 1, lane % 2);
  } else {
    mine[6] = static_cast<unsigned>(__shfl_sync(~((1U << 20) - 1), static_cast<int>(lane), 25));
  }
  __syncwarp();
  mine[7] = 7;
}

unsigned mask_where(bool (*holds)(unsigned lane, unsigned self), unsigned self) {
  unsigned mask = 0;
  for (unsigned lane = 0; lane < WARP; ++lane) mask |= static_cast<unsigned>(holds(lane, self)) << lane;
  return mask;
}

unsigned wanted_vote(unsigned thread, unsigned which) {
  const unsigned lane = thread % WARP, warp = thread / WARP;
  switch (which) {
    case 0:
      return mask_where([](unsigned other, unsigned) { return other % 3 == 0; }, lane);
    case 1:
      return warp == 1 ? 1 : 0;
    case 2:
      return warp == 1 ? 0 : 1;
    case 3:
      return mask_where([](unsigned other, unsigned self) { return other % 3 == self % 3; }, lane);
    case 4:
      return mask_where([](unsigned other, unsigned self) { return (other < 4) == (self < 4); }, lane);
    case 5:
      return 1;
    case 6:
      return lane < 20 ? mask_where([](unsigned other, unsigned) { return other < 20 && other % 2 == 1; }, lane) : 25;
    default:
      return 7;
  }
}

__global__ void reduce(const int* in, int* out, unsigned mask) {
  const int value = in[threadIdx.x];
  const auto bits = static_cast<unsigned>(value);
  if ((mask >> threadIdx.x & 1) == 0) return;
  int* mine = out + threadIdx.x * 9;
  mine[0] = __reduce_add_sync(mask, value);
  mine[1] = __reduce_max_sync(mask, value);
  mine[2] = __reduce_min_sync(mask, value);
  mine[3] = static_cast<int>(__reduce_add_sync(mask, bits));
  mine[4] = static_cast<int>(__reduce_max_sync(mask, bits));
  mine[5] = static_cast<int>(__reduce_min_sync(mask, bits));
  mine[6] = static_cast<int>(__reduce_and_sync(mask, bits));
  mine[7] = static_cast<int>(__reduce_or_sync(mask, bits));
  mine[8] = static_cast<int>(__reduce_xor_sync(mask, bits));
}

int wanted_reduction(const Shared<int>& in, unsigned mask, size_t which) {
  std::vector<int> values;
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if ((mask >> lane & 1) != 0) values.push_back(in[lane]);
  }
  const std::vector<unsigned> bits(values.begin(), values.end());
  unsigned sum = 0, every = ALL, some = 0, odd = 0;
  for (const unsigned b : bits) sum += b, every &= b, some |= b, odd ^= b;
  const int table[] = {static_cast<int>(sum),
                       *std::max_element(values.begin(), values.end()),
                       *std::min_element(values.begin(), values.end()),
                       static_cast<int>(sum),
                       static_cast<int>(*std::max_element(bits.begin(), bits.end())),
                       static_cast<int>(*std::min_element(bits.begin(), bits.end())),
                       static_cast<int>(every),
                       static_cast<int>(some),
                       static_cast<int>(odd)};
  return table[which];
}

void test_reductions() {
  Shared<int> in(WARP);
  for (int i = 0; i < WARP; ++i) in[i] = (i - 11) * 98765432;  // negative ones too, and sums that wrap
  for (const unsigned mask : {ALL, 0x0000ffffU, 0x80000001U, 0x00000100U}) {
    Shared<int> out(WARP * 9, -1);
    run(reduce, {dim3(1), dim3(WARP)}, in.data(), out.data(), mask);
    expect_all("reductions", out,
               [&](size_t i) { return (mask >> (i / 9) & 1) != 0 ? wanted_reduction(in, mask, i % 9) : -1; });
  }
}

// Lanes that have left need not come: a warp of 20, and one from which the odd lanes return.
__global__ void vote_after_exits(unsigned* out) {
  if (threadIdx.x % 2 == 1) return;
  out[threadIdx.x] = __ballot_sync(ALL, 1);
}

void test_exits() {
  Shared<unsigned> out(20);
  run(vote_after_exits, {dim3(1), dim3(20)}, out.data());
  expect_all("votes after exits", out, [](size_t i) { return i % 2 == 1 ? 0U : 0x00055555U; });
}

struct Matrices {
  int8_t a[16][32], b[8][32];
};

// Four products of the same bytes, taken as signed and as unsigned, on top of a sum that wraps around.
__global__ void multiply(const Matrices* in, int* out) {
  const unsigned lane = threadIdx.x, row = lane / 4, k = lane % 4 * 4;
  const auto four = [](const int8_t* bytes) { return *reinterpret_cast<const unsigned*>(bytes); };
  const unsigned a[4] = {four(&in->a[row][k]), four(&in->a[row + 8][k]), four(&in->a[row][k + 16]),
                         four(&in->a[row + 8][k + 16])};
  const unsigned b[2] = {four(&in->b[row][k]), four(&in->b[row][k + 16])};
  int c[4][4];
  for (auto& sums : c) {
    for (int& sum : sums) sum = INT32_MAX;
  }
  mrt::multiply_bytes<int8_t, int8_t>(c[0], a, b);
  mrt::multiply_bytes<int8_t, uint8_t>(c[1], a, b);
  mrt::multiply_bytes<uint8_t, int8_t>(c[2], a, b);
  mrt::multiply_bytes<uint8_t, uint8_t>(c[3], a, b);
  for (int kind = 0; kind < 4; ++kind) {
    for (unsigned e = 0; e < 4; ++e) out[kind * 128 + (row + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = c[kind][e];
  }
}

void test_matrices() {
  Shared<Matrices> in(1);
  for (int k = 0; k < 32; ++k) {
    for (int row = 0; row < 16; ++row) in[0].a[row][k] = static_cast<int8_t>(row * 37 + k * 101 + 128);
    for (int row = 0; row < 8; ++row) in[0].b[row][k] = static_cast<int8_t>(row * 59 + k * 83);
  }
  Shared<int> out(4 * 128);
  run(multiply, {dim3(1), dim3(WARP)}, in.data(), out.data());
  expect_all("products of bytes", out, [&](size_t i) {
    const size_t kind = i / 128, row = i % 128 / 8, column = i % 8;
    unsigned sum = INT32_MAX;
    for (int k = 0; k < 32; ++k) {
      const int8_t x = in[0].a[row][k], y = in[0].b[column][k];
      const int left = kind < 2 ? x : static_cast<uint8_t>(x), right = kind % 2 == 0 ? y : static_cast<uint8_t>(y);
      sum += static_cast<unsigned>(left * right);
    }
    return static_cast<int>(sum);
  });
}

}  // namespace

void test_warps() {
  test_shuffles<int>("shuffles of int");
  test_shuffles<unsigned>("shuffles of unsigned");
  test_shuffles<float>("shuffles of float");
  test_shuffles<double>("shuffles of double");
  test_shuffles<long long>("shuffles of long long");
  test_shuffles<unsigned long long>("shuffles of unsigned long long");
  Shared<unsigned> votes(2 * WARP * 8);
  run(vote, {dim3(1), dim3(2 * WARP)}, votes.data());
  expect_all("votes and matches", votes,
             [](size_t i) { return wanted_vote(static_cast<unsigned>(i / 8), static_cast<unsigned>(i % 8)); });
  test_reductions();
  test_exits();
  test_matrices();
}
