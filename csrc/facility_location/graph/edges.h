// The edges of a graph in fixed point, as the definition of a matrix's pairs has it: a missing diagonal is 1.
#pragma once

#include <algorithm>
#include <vector>

#include "facility_location/facility_location.h"
#include "facility_location/graph/graph.h"

namespace mrt {

class Edges {
 public:
  explicit Edges(const GraphView& graph) : graph_(graph) {}
  int64_t candidates() const { return graph_.N; }
  int64_t rows() const { return graph_.M; }

  // body(i, j, t) for the edges with t > 0 of rows first … last - 1.
  template <class Body>
  void each(int64_t first, int64_t last, const Body& body) const {
    for (int64_t i = first; i < last; ++i) {
      bool lists_itself = !graph_.has_self;
      for (int64_t e = graph_.offsets[i]; e < graph_.offsets[i + 1]; ++e) {
        const int64_t j = graph_.ids[e];
        lists_itself = lists_itself || i == j;
        if (const uint16_t t = steps(i, j, static_cast<double>(graph_.values[e]) / graph_.scale)) body(i, j, t);
      }
      if (lists_itself) continue;
      if (const uint16_t t = steps(i, i, 1.0 / graph_.scale)) body(i, i, t);
    }
  }

 private:
  uint16_t steps(int64_t i, int64_t j, double similarity) const {
    constexpr float INTEGERS = 0x1.8p23f;  // adding and subtracting it rounds to integers, half to even
    const auto unit = static_cast<float>((graph_.weight == nullptr ? 1.0 : graph_.weight[i]) * STEPS / graph_.maximum);
    const float quality = graph_.quality == nullptr ? 1.0f : graph_.quality[j];
    const float steps = (static_cast<float>(similarity) * (unit * quality) + INTEGERS) - INTEGERS;
    return static_cast<uint16_t>(std::min(steps, static_cast<float>(STEPS)));
  }

  const GraphView& graph_;
};

}  // namespace mrt
