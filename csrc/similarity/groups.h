// The groups of a similarity problem: where their rows and scores lie, and which of them one thread does alone.
#pragma once

#include <algorithm>
#include <vector>

#include "similarity/similarity.h"

namespace mrt {

constexpr bool is_normalised(Metric metric) {
  return metric != Metric::dot && metric != Metric::rbf;
}
constexpr bool has_slope(Metric metric) {  // ds/dproduct depends on the product
  return metric == Metric::clamped_cosine || metric == Metric::rbf;
}

struct Group {
  Features x, y;
  int64_t M, N, first_x, first_y;  // rows, and the number of the first
  int64_t cell;                    // of its scores among all
};

class Groups {
 public:
  Groups(const SimilarityProblem& problem, int threads) : p_(problem), few_(4 * std::max(threads, 1)) {
    starts_.push_back(0);
    for (int64_t b = 0; p_.offsets != nullptr && b < p_.B; ++b)
      starts_.push_back(starts_[b] + rows_of(b, p_.x) * rows_of(b, p_.y));
    for (int64_t b = 0; b < p_.B; ++b) {
      if (is_shared(b)) {
        shared_.push_back(b);
      } else {
        largest_.M = std::max(largest_.M, rows_of(b, p_.x));
        largest_.N = std::max(largest_.N, rows_of(b, p_.y));
      }
    }
  }

  Group at(int64_t b) const {
    Group g{p_.x.first, p_.y.first, rows_of(b, p_.x), rows_of(b, p_.y), first_of(b, p_.x), first_of(b, p_.y), 0};
    g.cell = p_.offsets != nullptr ? starts_[b] : b * g.M * g.N;
    move(g.x, p_.offsets != nullptr ? g.first_x * g.x.row_stride : b * p_.x.batch_stride);
    move(g.y, p_.offsets != nullptr ? g.first_y * g.y.row_stride : b * p_.y.batch_stride);
    return g;
  }

  // Everybody works on a group that takes one core more than about 2 ms, or 0.1 ms where there are few groups.
  bool is_shared(int64_t b) const {
    constexpr int64_t LONG = int64_t{1} << 27, SHORT = int64_t{1} << 22;  // products of two features
    return rows_of(b, p_.x) * rows_of(b, p_.y) * (p_.x.first.columns + 1) >= (p_.B < few_ ? SHORT : LONG);
  }
  const std::vector<int64_t>& shared() const { return shared_; }

  struct Largest {
    int64_t M = 0, N = 0;
  };
  Largest largest_alone() const { return largest_; }
  int64_t grain() const { return largest_.M <= DIRECT_ROWS && largest_.N <= DIRECT_ROWS ? 16 : 1; }
  int64_t num_cells() const {
    return p_.offsets != nullptr ? starts_.back() : p_.B * p_.x.rows_per_group * p_.y.rows_per_group;
  }

 private:
  int64_t rows_of(int64_t b, const Matrices& m) const {
    return p_.offsets != nullptr ? p_.offsets[b + 1] - p_.offsets[b] : m.rows_per_group;
  }
  int64_t first_of(int64_t b, const Matrices& m) const {
    return p_.offsets != nullptr ? p_.offsets[b] : b * m.rows_per_group;
  }
  static void move(Features& rows, int64_t elements) {
    rows.data = static_cast<const char*>(rows.data) + elements * element_size(rows.dtype);
  }

  const SimilarityProblem& p_;
  const int64_t few_;
  std::vector<int64_t> starts_, shared_;
  Largest largest_;
};

}  // namespace mrt
