// cross_entropy on the CPU: what is done to one row of logits. Statistics first, then the gradient.
// Contract: columns adjacent, any alignment; the gradient may replace the logits.
// Idea: a block of the row is read from memory once and its exponentials are summed while it is in the innermost cache;
// the second pass finds the row in the L2 cache, computes them again and writes the gradient, weight folded in.
// Sums: float32 in a block of 2,048 columns, lane by lane, float64 from block to block.
#pragma once

#include "cross_entropy/cross_entropy.h"
#include "cross_entropy/lanes.h"

namespace mrt {
namespace {
namespace rows {

using lanes::Float;

constexpr int64_t BLOCK = 2048;  // columns: 8 KiB of float32, and 128 additions per lane of AVX-512

struct Plain {
  MRT_INLINE Float value(Float z) const { return z; }
  MRT_INLINE Float pull(Float, Float gradient) const { return gradient; }
};

struct Scaled {
  Transform transform;
  MRT_INLINE Float value(Float z) const { return transform.out * z; }
  MRT_INLINE Float pull(Float, Float gradient) const { return transform.out * gradient; }
};

struct Capped {
  Transform transform;
  MRT_INLINE Float value(Float z) const { return transform.out * lanes::tanh(transform.in * z).value; }
  MRT_INLINE Float pull(Float z, Float gradient) const {
    return transform.out * transform.in * lanes::tanh(transform.in * z).slope * gradient;
  }
};

template <class Type>
MRT_INLINE float largest(const typename Type::Element* z, int64_t count) {
  constexpr int WIDTH = 4 * lanes::COUNT;  // four maxima at a time: one would wait for itself
  Float m[4] = {lanes::fill(-lanes::INFINITE), m[0], m[0], m[0]};
  int64_t v = 0;
  for (; v + WIDTH <= count; v += WIDTH)
    for (int i = 0; i < 4; ++i) m[i] = lanes::larger(m[i], Type::load(z + v + i * lanes::COUNT));
  for (; v < count; v += lanes::COUNT) {
    const int64_t left = count - v;
    const Float last =
        left < lanes::COUNT ? lanes::first(left, lanes::load_first<Type>(z + v, left), m[0]) : Type::load(z + v);
    m[0] = lanes::larger(m[0], last);
  }
  return lanes::largest(lanes::larger(lanes::larger(m[0], m[1]), lanes::larger(m[2], m[3])));
}

// Float32 sums over one block, relative to `shift`.
template <class Type, class Cap>
struct Sums {
  const Cap& cap;
  const Float shift;
  const bool wants_more;
  Float sum = {}, weighted = {}, plain = {};

  MRT_INLINE void add(Float u, Float exponential) {
    sum += exponential;
    if (wants_more) {  // e d is 0 where e is, even if d is infinite
      const Float d = lanes::larger(lanes::fill(2.0f * lanes::LOWEST), u - shift);
      weighted = lanes::multiply_add(exponential, d, weighted);
    }
  }

  MRT_INLINE void add(const typename Type::Element* z, int64_t count) {
    int64_t v = 0;
    for (; v + lanes::COUNT <= count; v += lanes::COUNT) {
      const Float u = cap.value(Type::load(z + v));
      add(u, lanes::exp(u - shift));
      if (wants_more) plain += u;
    }
    if (v < count) {
      const Float u = cap.value(lanes::load_first<Type>(z + v, count - v));  // 0 in the lanes beyond
      add(u, lanes::first(count - v, lanes::exp(u - shift), Float{}));
      if (wants_more) plain += u;
    }
  }
};

template <class Type, class Cap>
MRT_INLINE RowStatistics statistics(const typename Type::Element* z, int64_t V, const Cap& cap, bool wants_more) {
  RowStatistics row = {-lanes::INFINITE, 0.0, 0.0, 0.0};
  for (int64_t begin = 0; begin < V; begin += BLOCK) {
    const int64_t count = V - begin < BLOCK ? V - begin : BLOCK;
    const double m = cap.value(lanes::fill(largest<Type>(z + begin, count)))[0];
    if (m > row.largest) {  // what was summed so far was relative to the maximum so far
      const double less = row.largest - m, factor = row.sum == 0.0 ? 0.0 : __builtin_exp(less);
      row.weighted = row.sum == 0.0 ? 0.0 : (row.weighted + less * row.sum) * factor;
      row.sum *= factor;
      row.largest = m;
    }
    // -infinity - -infinity is NaN: while nothing is larger, exp(-infinity - 0) = 0 is right.
    const float shift = row.largest == -lanes::INFINITE ? 0.0f : static_cast<float>(row.largest);
    Sums<Type, Cap> block{cap, lanes::fill(shift), wants_more};
    block.add(z + begin, count);
    row.sum += lanes::sum(block.sum);
    row.weighted += lanes::sum(block.weighted);
    row.plain += lanes::sum(block.plain);
  }
  return row;
}

template <class Cap>
MRT_INLINE Float slope(Float z, const Cap& cap, const GradientRule& rule) {
  const Float d = cap.value(z) - rule.largest;
  const Float e = lanes::exp(d);
  if (rule.slope == 0.0f)
    return cap.pull(z, lanes::multiply_add(e, lanes::fill(rule.factor), lanes::fill(-rule.constant)));
  const Float finite = lanes::larger(lanes::fill(2.0f * lanes::LOWEST), d);
  const Float weight = lanes::multiply_add(finite, lanes::fill(rule.slope), lanes::fill(rule.factor));
  return cap.pull(z, lanes::multiply_add(e, weight, lanes::fill(-rule.constant)));
}

template <class Type, class Cap>
MRT_INLINE void gradient(const typename Type::Element* z, typename Type::Element* out, int64_t V, const Cap& cap,
                         const GradientRule& rule) {
  int64_t v = 0;
  for (; v + lanes::COUNT <= V; v += lanes::COUNT) Type::store(out + v, slope(Type::load(z + v), cap, rule));
  if (v < V) lanes::store_first<Type>(out + v, slope(lanes::load_first<Type>(z + v, V - v), cap, rule), V - v);
}

// Calls body(type, cap) with the classes that dtype and transform name.
template <class Body>
MRT_INLINE auto of(DType dtype, const Transform& transform, const Body& body) {
  const auto with = [&](auto type) {
    if (transform.in != 0.0f) return body(type, Capped{transform});
    if (transform.out != 1.0f) return body(type, Scaled{transform});
    return body(type, Plain{});
  };
  if (dtype == DType::float32) return with(lanes::Float32{});
  if (dtype == DType::bfloat16) return with(lanes::Bfloat16{});
  return with(lanes::Float16{});
}

}  // namespace rows

RowStatistics row_statistics(const void* logits, DType dtype, int64_t V, Transform transform, bool wants_more) {
  return rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    const auto* z = static_cast<const typename Type::Element*>(logits);
    if (wants_more) return rows::statistics<Type>(z, V, cap, true);
    return rows::statistics<Type>(z, V, cap, false);
  });
}

void row_gradient(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform, GradientRule rule) {
  rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    const auto* z = static_cast<const typename Type::Element*>(logits);
    rows::gradient<Type>(z, static_cast<typename Type::Element*>(gradient), V, cap, rule);
  });
}

// One element as float32, or from it.
float row_read(const void* row, DType dtype, int64_t v) {
  return rows::of(dtype, {0.0f, 1.0f}, [&](auto type, const auto&) {
    using Type = decltype(type);
    return lanes::load_first<Type>(static_cast<const typename Type::Element*>(row) + v, 1)[0];
  });
}

void row_write(void* row, DType dtype, int64_t v, float value) {
  rows::of(dtype, {0.0f, 1.0f}, [&](auto type, const auto&) {
    using Type = decltype(type);
    lanes::store_first<Type>(static_cast<typename Type::Element*>(row) + v, lanes::fill(value), 1);
  });
}

// The lowest column that holds the largest logit; -1 when none does (NaN).
int64_t row_argmax(const void* row, DType dtype, int64_t V) {
  return rows::of(dtype, {0.0f, 1.0f}, [&](auto type, const auto&) -> int64_t {
    using Type = decltype(type);
    const auto* z = static_cast<const typename Type::Element*>(row);
    const float m = rows::largest<Type>(z, V);
    int64_t v = 0;
    while (v + lanes::COUNT < V && rows::largest<Type>(z + v, lanes::COUNT) != m) v += lanes::COUNT;
    for (; v < V; ++v)
      if (lanes::load_first<Type>(z + v, 1)[0] == m) return v;
    return -1;
  });
}

}  // namespace
}  // namespace mrt
