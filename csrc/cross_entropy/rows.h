// cross_entropy on the CPU: what is done to one row of logits. Statistics first, then the gradient.
// Contract: columns adjacent, any alignment; the gradient may replace the logits.
// Idea: a block of the row is read from memory once; its exponentials are summed and stored while it is in the innermost
// cache. The second pass finds them in the L2 cache and writes the gradient, weight folded in. With a cap or an entropy it
// computes them again from the logits.
// Sums: float32 over 32 numbers per lane, float64 beyond.
#pragma once

#include "cross_entropy/cross_entropy.h"
#include "cross_entropy/lanes.h"

#include <type_traits>

namespace mrt {
namespace {
namespace rows {

using lanes::Float;
using lanes::Two;
using lanes::WIDTH;

constexpr int64_t BLOCK = BLOCK_COLUMNS;
constexpr int64_t PIECE = 32 * WIDTH;  // what float32 lanes add up before float64 takes over: 32 numbers each
static_assert(BLOCK % PIECE == 0, "pieces fill blocks");

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
  Two m = {lanes::fill(-lanes::INFINITE), m.a}, n = m;  // four maxima at a time: one would wait for itself
  const auto take = [](Two& m, const Two& z)
                        __attribute__((always_inline)) { m = {lanes::larger(m.a, z.a), lanes::larger(m.b, z.b)}; };
  int64_t v = 0;
  for (; v + 2 * WIDTH <= count; v += 2 * WIDTH) {
    take(m, Type::load(z + v));
    take(n, Type::load(z + v + WIDTH));
  }
  for (; v + WIDTH <= count; v += WIDTH) take(m, Type::load(z + v));
  if (v < count) take(m, lanes::first<Type>(count - v, lanes::load_first<Type>(z + v, count - v), n.a));
  take(m, n);
  return lanes::largest(lanes::larger(m.a, m.b));
}

// Memory works on the next block while this one is computed. Beyond the last row nothing is read.
template <class Element>
MRT_INLINE void prefetch(const Element* z) {
  for (int64_t v = 0; v < WIDTH; v += static_cast<int64_t>(64 / sizeof(Element))) __builtin_prefetch(z + v);
}

// Float32 sums over one piece, relative to `shift`. A finite d, because e d is 0 where e is, even if d is infinite.
template <class Type, class Cap, bool HAS_MORE>
struct Sums {
  const Cap& cap;
  const Float shift;
  Two sum = {}, weighted = {}, plain = {};

  // Adds u and returns exp(u - shift), both only where there is something.
  MRT_INLINE Float add(Float u, Float& sum, Float& weighted, Float& plain, const Float* inside) {
    const Float d = u - shift;
    Float e = lanes::exp(d);
    if (inside) e = *inside > 0.0f ? e : Float{};
    sum += e;
    if (HAS_MORE) {
      weighted = lanes::multiply_add(e, lanes::larger(lanes::fill(2.0f * lanes::LOWEST), d), weighted);
      plain += inside ? (*inside > 0.0f ? d : Float{}) : d;
    }
    return e;
  }

  MRT_INLINE Two add(const Two& z, const Two* inside = nullptr) {
    return {add(cap.value(z.a), sum.a, weighted.a, plain.a, inside ? &inside->a : nullptr),
            add(cap.value(z.b), sum.b, weighted.b, plain.b, inside ? &inside->b : nullptr)};
  }

  // Whole registers leave their exponentials in e, where it is not null.
  MRT_INLINE void add(const typename Type::Element* z, int64_t count, float* e) {
    int64_t v = 0;
    for (; v + WIDTH <= count; v += WIDTH) {
      prefetch(z + v + BLOCK);
      const Two exponentials = add(Type::load(z + v));
      if (e) lanes::Float32::store(e + v, exponentials);
    }
    if (v == count) return;
    const Two inside = lanes::first<Type>(count - v, {lanes::fill(1.0f), lanes::fill(1.0f)}, Float{});
    add(lanes::load_first<Type>(z + v, count - v), &inside);
  }
};

template <class Type, class Cap, bool HAS_MORE>
MRT_INLINE RowStatistics statistics(const typename Type::Element* z, int64_t V, const Cap& cap,
                                    const Exponentials& out) {
  RowStatistics row = {-lanes::INFINITE, 0.0, 0.0, 0.0};
  for (int64_t begin = 0; begin < V; begin += BLOCK) {
    const int64_t count = V - begin < BLOCK ? V - begin : BLOCK;
    const double m = cap.value(lanes::fill(largest<Type>(z + begin, count)))[0];
    if (m > row.largest) {  // what was summed so far was relative to the maximum so far
      const double less = row.largest - m, factor = row.sum == 0.0 ? 0.0 : __builtin_exp(less);
      row.plain += begin == 0 ? 0.0 : less * static_cast<double>(begin);
      row.weighted = row.sum == 0.0 ? 0.0 : (row.weighted + less * row.sum) * factor;
      row.sum *= factor;
      row.largest = m;
    }
    // -infinity - -infinity is NaN: while nothing is larger, exp(-infinity - 0) = 0 is right.
    const float shift = row.largest == -lanes::INFINITE ? 0.0f : static_cast<float>(row.largest);
    if (out.e) out.shifts[begin / BLOCK] = static_cast<float>(row.largest);
    for (int64_t v = 0; v < count; v += PIECE) {
      Sums<Type, Cap, HAS_MORE> piece{cap, lanes::fill(shift)};
      piece.add(z + begin + v, count - v < PIECE ? count - v : PIECE, out.e ? out.e + begin + v : nullptr);
      row.sum += lanes::sum(piece.sum.a, piece.sum.b);
      row.weighted += lanes::sum(piece.weighted.a, piece.weighted.b);
      row.plain += lanes::sum(piece.plain.a, piece.plain.b);
    }
  }
  return row;
}

template <class Cap, bool HAS_SLOPE>
MRT_INLINE Float slope(Float z, const Cap& cap, const GradientRule& rule) {
  const Float d = cap.value(z) - rule.largest;
  Float factor = lanes::fill(rule.factor);
  if (HAS_SLOPE)
    factor = lanes::multiply_add(lanes::larger(lanes::fill(2.0f * lanes::LOWEST), d), lanes::fill(rule.slope), factor);
  return cap.pull(z, lanes::multiply_add(lanes::exp(d), factor, lanes::fill(-rule.constant)));
}

template <class Type, class Cap, bool HAS_SLOPE>
MRT_INLINE void gradient(const typename Type::Element* z, typename Type::Element* out, int64_t V, const Cap& cap,
                         const GradientRule& rule) {
  const auto both = [&](const Two& z) __attribute__((always_inline)) {
    return Two{slope<Cap, HAS_SLOPE>(z.a, cap, rule), slope<Cap, HAS_SLOPE>(z.b, cap, rule)};
  };
  int64_t v = 0;
  for (; v + WIDTH <= V; v += WIDTH) Type::store(out + v, both(Type::load(z + v)));
  if (v < V) lanes::store_first<Type>(out + v, both(lanes::load_first<Type>(z + v, V - v)), V - v);
}

// One block of the gradient from the exponentials that the statistics left.
template <class Type>
MRT_INLINE void scale(const float* e, typename Type::Element* out, int64_t count, float factor, float constant) {
  const Float f = lanes::fill(factor), c = lanes::fill(-constant);
  for (int64_t v = 0; v + WIDTH <= count; v += WIDTH) {
    const Two exponentials = lanes::Float32::load(e + v);
    Type::store(out + v, {lanes::multiply_add(exponentials.a, f, c), lanes::multiply_add(exponentials.b, f, c)});
  }
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

RowStatistics row_statistics(const void* logits, DType dtype, int64_t V, Transform transform, bool has_more,
                             Exponentials out) {
  return rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    using Cap = std::decay_t<decltype(cap)>;
    const auto* z = static_cast<const typename Type::Element*>(logits);
    if (has_more) return rows::statistics<Type, Cap, true>(z, V, cap, out);
    return rows::statistics<Type, Cap, false>(z, V, cap, out);
  });
}

void row_gradient(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform, GradientRule rule) {
  rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    using Cap = std::decay_t<decltype(cap)>;
    const auto* z = static_cast<const typename Type::Element*>(logits);
    auto* out = static_cast<typename Type::Element*>(gradient);
    if (rule.slope != 0.0f) {
      rows::gradient<Type, Cap, true>(z, out, V, cap, rule);
    } else {
      rows::gradient<Type, Cap, false>(z, out, V, cap, rule);
    }
  });
}

// The same without a cap and a slope, from the exponentials of row_statistics: the logits may lie under them.
void row_scale(const void* logits, void* gradient, DType dtype, int64_t V, Transform transform, GradientRule rule,
               Exponentials from) {
  rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    using Cap = std::decay_t<decltype(cap)>;
    auto* out = static_cast<typename Type::Element*>(gradient);
    for (int64_t begin = 0; begin < V; begin += rows::BLOCK) {
      const int64_t count = V - begin < rows::BLOCK ? V - begin : rows::BLOCK;
      const double back = __builtin_exp(from.shifts[begin / rows::BLOCK] - static_cast<double>(rule.largest));
      rows::scale<Type>(from.e + begin, out + begin, count, transform.out * static_cast<float>(back * rule.factor),
                        transform.out * rule.constant);
    }
    const int64_t done = V / rows::WIDTH * rows::WIDTH;
    const auto* z = static_cast<const typename Type::Element*>(logits);
    rows::gradient<Type, Cap, false>(z + done, out + done, V - done, cap, rule);
  });
}

// One element, as float32 and as what is normalised.
Logit row_read(const void* row, DType dtype, int64_t v, Transform transform) {
  return rows::of(dtype, transform, [&](auto type, const auto& cap) {
    using Type = decltype(type);
    const lanes::Float z = lanes::load_first<Type>(static_cast<const typename Type::Element*>(row) + v, 1).a;
    return Logit{z[0], cap.value(z)[0]};
  });
}

void row_write(void* row, DType dtype, int64_t v, float value) {
  rows::of(dtype, {0.0f, 1.0f}, [&](auto type, const auto&) {
    using Type = decltype(type);
    lanes::store_first<Type>(static_cast<typename Type::Element*>(row) + v, {lanes::fill(value), lanes::fill(value)},
                             1);
  });
}

// The lowest column that holds the largest logit; -1 when none does (NaN).
int64_t row_argmax(const void* row, DType dtype, int64_t V) {
  return rows::of(dtype, {0.0f, 1.0f}, [&](auto type, const auto&) -> int64_t {
    using Type = decltype(type);
    const auto* z = static_cast<const typename Type::Element*>(row);
    const float m = rows::largest<Type>(z, V);
    int64_t v = 0;
    while (v + rows::WIDTH < V && rows::largest<Type>(z + v, rows::WIDTH) != m) v += rows::WIDTH;
    for (; v < V; ++v)
      if (lanes::load_first<Type>(z + v, 1).a[0] == m) return v;
    return -1;
  });
}

}  // namespace
}  // namespace mrt
