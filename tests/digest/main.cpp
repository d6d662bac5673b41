// The digest without Python and torch: csrc selects from the seeded problems, and every block's sha256 is printed.
//
//   digest NUMBER THREADS    the first NUMBER blocks of every kind: its name, the block's number, its sha256
//
// The bytes are those of mrtkern/digest/kinds.py: 64-bit little-endian integers, how many numbers each problem has, then
// the numbers of all of them. MRTKERN_ISA caps the instruction set, whose name is the first line.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "digest/problems.h"
#include "isa/path.h"
#include "sha256.h"

namespace {

using mrt::digest::Kind;
using mrt::digest::PROBLEMS;
using Numbers = std::vector<int64_t>;

// Written one by one, whatever the machine's order of bytes.
std::string bytes_of(const Numbers& sizes, const Numbers& numbers) {
  std::string bytes;
  for (const Numbers* part : {&sizes, &numbers})
    for (const int64_t number : *part)
      for (int shift = 0; shift < 64; shift += 8)
        bytes += static_cast<char>(static_cast<uint64_t>(number) >> shift & 0xff);
  return bytes;
}

struct Block {
  Block(Kind kind, int64_t number)
      : rule(mrt::digest::rule_of(kind, number)),
        seed(static_cast<uint64_t>(number)),
        offsets(PROBLEMS + 1),
        k(PROBLEMS) {
    mrt::digest::make_sizes(kind, number, PROBLEMS, offsets.data(), k.data());
    for (std::vector<float>* array : {&weight, &quality, &bonus}) array->resize(offsets.back());
    x.resize(offsets.back() * rule.D);
    mrt::digest::make_rows(kind, number, PROBLEMS, offsets.data(), x.data(), weight.data(), quality.data(),
                           bonus.data());
  }
  mrt::Features rows(int64_t first) const {
    return {x.data() + first * rule.D, mrt::DType::float32, rule.D, 1, rule.D};
  }

  mrt::digest::Rule rule;
  uint64_t seed;
  Numbers offsets, k;
  std::vector<float> x, weight, quality, bonus;
};

double coarse_radius(int64_t D) {
  return 4096.0 - std::sqrt(static_cast<double>(D) + 9.0) / 2.0;
}

double fine_radius(int64_t D) {
  return 32767.0 - std::sqrt(static_cast<double>(D)) / 2.0;
}

std::string picks(const Block& b, int threads) {
  int64_t total = 0;
  Numbers group_key(PROBLEMS);
  for (int64_t p = 0; p < PROBLEMS; ++p) total += b.k[p], group_key[p] = p;
  Numbers ids(total), gains(total), kept(PROBLEMS), each[4], owner(b.offsets.back());
  for (Numbers& values : each) values.resize(PROBLEMS);
  std::vector<float> share(total);
  const bool has_weights = b.rule.has_weights;
  const mrt::SelectionProblem problem{b.rows(0),
                                      PROBLEMS,
                                      b.offsets.data(),
                                      b.k.data(),
                                      has_weights ? b.weight.data() : nullptr,
                                      has_weights ? b.quality.data() : nullptr,
                                      has_weights ? b.bonus.data() : nullptr,
                                      nullptr,
                                      group_key.data(),
                                      b.rule.metric,
                                      coarse_radius(b.rule.D),
                                      b.rule.fill,
                                      b.seed,
                                      0};
  const mrt::SelectionResult result{ids.data(),     gains.data(),   share.data(),   kept.data(), each[0].data(),
                                    each[1].data(), each[2].data(), each[3].data(), owner.data()};
  mrt::select_groups(problem, result, threads);
  Numbers found;
  for (int64_t p = 0, slot = 0; p < PROBLEMS; slot += b.k[p], ++p)
    for (int64_t i = 0; i < kept[p]; ++i) found.push_back(ids[slot + i] - b.offsets[p]);
  return bytes_of(kept, found);
}

std::string lists(const Block& b, int threads) {
  Numbers labels(b.rule.most), sizes, found;
  for (int64_t r = 0; r < b.rule.most; ++r) labels[r] = r % mrt::digest::LABELS;
  for (int64_t p = 0; p < PROBLEMS; ++p) {
    const int64_t first = b.offsets[p], rows = b.offsets[p + 1] - first, k = b.k[p];
    const int64_t M = b.rule.is_self ? rows : (rows + 1) / 2, start = b.rule.is_self ? 0 : M;
    Numbers ids(M * k);
    std::vector<float> scores(M * k);
    const mrt::NeighborsProblem problem{b.rows(first),
                                        b.rows(first + start),
                                        M,
                                        rows - start,
                                        b.rule.is_self,
                                        k,
                                        b.rule.metric,
                                        b.rule.precision,
                                        fine_radius(b.rule.D),
                                        b.rule.is_self,
                                        b.rule.has_groups ? labels.data() : nullptr,
                                        b.rule.has_groups ? labels.data() + start : nullptr};
    mrt::neighbors(problem, {ids.data(), scores.data()}, threads);
    sizes.push_back(M * k);
    found.insert(found.end(), ids.begin(), ids.end());
  }
  return bytes_of(sizes, found);
}

std::string kept(const Block& b, int threads) {
  Numbers sizes, found;
  for (int64_t p = 0; p < PROBLEMS; ++p) {
    const int64_t N = b.offsets[p + 1] - b.offsets[p], before = static_cast<int64_t>(found.size());
    Numbers labels(N);
    mrt::components(b.rows(b.offsets[p]), N, b.rule.threshold, fine_radius(b.rule.D), labels.data(), threads);
    for (int64_t i = 0; i < N; ++i)
      if (labels[i] == i) found.push_back(i);
    sizes.push_back(static_cast<int64_t>(found.size()) - before);
  }
  return bytes_of(sizes, found);
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return std::fputs("usage: digest NUMBER THREADS\n", stderr), 2;
  const int64_t blocks = std::atoll(words[1]);
  const int threads = std::atoi(words[2]);
  std::printf("%s\n", mrt::path_in_use().name);
  const struct {
    const char* name;
    Kind kind;
    std::string (*select)(const Block&, int);
  } kinds[] = {{"picks", Kind::picks, picks}, {"lists", Kind::lists, lists}, {"kept", Kind::kept, kept}};
  for (const auto& kind : kinds)
    for (int64_t block = 0; block < blocks; ++block) {
      const std::string digest = sha256::of(kind.select(Block(kind.kind, block), threads));
      std::printf("%s %lld %s\n", kind.name, static_cast<long long>(block), digest.c_str());
      std::fflush(stdout);
    }
  return 0;
}
