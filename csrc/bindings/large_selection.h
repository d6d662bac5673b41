// Selection from large sets as Python names it: a ground, and the greedy loop over it.
//
// Ids are int32 arrays at addresses; every call lets other Python threads run, and may be interrupted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings/running.h"
#include "facility_location/features/features.h"
#include "facility_location/graph/graph.h"
#include "facility_location/lazy.h"
#include "facility_location/matrix/matrix.h"
#include "facility_location/swaps.h"

namespace {

inline mrt::MatrixType matrix_type_of(const std::string& name) {
  return named<mrt::MatrixType>("dtype", name,
                                {{"float32", mrt::MatrixType::float32},
                                 {"float64", mrt::MatrixType::float64},
                                 {"bfloat16", mrt::MatrixType::bfloat16},
                                 {"float16", mrt::MatrixType::float16},
                                 {"uint16", mrt::MatrixType::uint16}});
}

// A ground on a device: Python computes what the loop asks, `asked` has a method of each name. Arrays are views of the
// loop's memory, gone after the call.
class PythonOracle : public mrt::Oracle {
 public:
  PythonOracle(py::object asked, int64_t candidates) : asked_(std::move(asked)), candidates_(candidates) {}

  int64_t candidates() const override { return candidates_; }
  bool bounds(int64_t* out) override {
    const py::gil_scoped_acquire gil;
    return asked_.attr("bounds")(view(out, candidates_)).cast<bool>();
  }
  void gains(const int32_t* ids, int64_t count, int64_t* out) override {
    const py::gil_scoped_acquire gil;
    asked_.attr("gains")(view(ids, count), view(out, count));
  }
  void all_gains(int64_t* out) override {
    const py::gil_scoped_acquire gil;
    asked_.attr("all_gains")(view(out, candidates_));
  }
  int64_t batch() const override { return number("batch"); }
  int64_t least_batch() const override { return number("batch"); }  // a launch takes as long for one
  int64_t refresh_after() const override { return number("refresh_after"); }
  bool is_cheap() const override { return number("is_cheap") != 0; }
  void take(const int32_t* ids, int64_t count, int64_t* gained) override {
    const py::gil_scoped_acquire gil;
    asked_.attr("take")(view(ids, count), gained == nullptr ? py::object(py::none()) : view(gained, count));
  }
  void reset() override {
    const py::gil_scoped_acquire gil;
    asked_.attr("reset")();
  }
  void before_pick(const uint8_t* is_open) override {
    const py::gil_scoped_acquire gil;
    asked_.attr("before_pick")(view(is_open, candidates_));
  }

 private:
  template <class T>
  static py::object view(T* values, int64_t count) {
    return py::array_t<std::remove_const_t<T>>(count, values, py::none());
  }
  int64_t number(const char* name) const {
    const py::gil_scoped_acquire gil;
    return asked_.attr(name).cast<int64_t>();
  }

  const py::object asked_;
  const int64_t candidates_;
};

// weight and quality: 0 where there are none. maximum: the largest weight times quality.
struct PairWeights {
  Address weight, quality;
  double maximum;
};

// covered None: the candidates themselves.
inline mrt::LargeProblem large_problem(const mrt::Features& candidates, const std::optional<mrt::Features>& covered,
                                       int64_t N, int64_t M, const std::string& metric, double radius,
                                       const PairWeights& weights, bool is_ordered, int64_t list_bytes, int threads) {
  mrt::LargeProblem problem{};
  problem.candidates = candidates;
  problem.covered = covered ? *covered : candidates;
  problem.N = N;
  problem.M = M;
  problem.is_self = !covered;
  problem.metric = metric_of(metric);
  problem.radius = radius;
  problem.weight = at<const float>(weights.weight);
  problem.quality = at<const float>(weights.quality);
  problem.maximum = weights.maximum;
  problem.is_ordered = is_ordered;
  problem.list_bytes = list_bytes;
  problem.threads = threads;
  return problem;
}

inline std::unique_ptr<mrt::TableOracle> table_of_matrix(Address data, const std::string& dtype,
                                                         std::pair<int64_t, int64_t> shape,
                                                         std::pair<int64_t, int64_t> strides, double scale,
                                                         const PairWeights& weights, int threads) {
  mrt::MatrixView s{};
  s.data = at<const void>(data);
  s.type = matrix_type_of(dtype);
  std::tie(s.M, s.N) = shape;
  std::tie(s.row_stride, s.column_stride) = strides;
  s.scale = scale;
  return released([&] {
    return std::make_unique<mrt::TableOracle>(s, at<const float>(weights.weight), at<const float>(weights.quality),
                                              weights.maximum, threads);
  });
}

inline std::unique_ptr<mrt::GraphOracle> graph_oracle(Address offsets, Address ids, Address values,
                                                      std::pair<int64_t, int64_t> shape, double scale, bool has_self,
                                                      const PairWeights& weights, int threads) {
  mrt::GraphView graph{};
  graph.offsets = at<const int64_t>(offsets);
  graph.ids = at<const int64_t>(ids);
  graph.values = at<const float>(values);
  std::tie(graph.M, graph.N) = shape;
  graph.scale = scale;
  graph.has_self = has_self;
  graph.weight = at<const float>(weights.weight);
  graph.quality = at<const float>(weights.quality);
  graph.maximum = weights.maximum;
  return released([&] { return std::make_unique<mrt::GraphOracle>(graph, threads); });
}

inline mrt::Ended pick(mrt::LazyGreedy& greedy, int64_t until, int64_t k, int64_t least, int64_t enough,
                       const py::object& progress) {
  const Listening listening(progress);
  return released([&] { return greedy.pick(until, k, {least, enough}); });
}

// cost [N] and label [N] 0: no budget, no classes; cap and least [classes], least 0: zeros.
inline mrt::Limits limits(int64_t N, int64_t k, Address cost, int64_t budget, bool is_by_ratio, Address label,
                          Address cap, Address least, int64_t classes) {
  return {{at<const int64_t>(cost), budget, is_by_ratio, at<const int32_t>(label), at<const int64_t>(cap),
           at<const int64_t>(least), classes},
          N,
          k};
}

// Addresses of kept [count], bonus [N] and is_open [N]; all are copied.
inline std::unique_ptr<mrt::Swaps> swaps(mrt::PairSource& pairs, Address kept, int64_t count, int64_t num_fixed,
                                         int64_t N, Address bonus, Address is_open, const mrt::Limits& limits) {
  const auto* const ids = at<const int32_t>(kept);
  const auto* const extra = at<const int64_t>(bonus);
  const auto* const open = at<const uint8_t>(is_open);
  return released([&] {
    return std::make_unique<mrt::Swaps>(pairs, std::vector<int32_t>(ids, ids + count), num_fixed,
                                        std::vector<int64_t>(extra, extra + N), std::vector<uint8_t>(open, open + N),
                                        limits);
  });
}

inline void bind_swaps(py::module_& m) {
  py::class_<mrt::Swaps>(m, "Swaps", py::module_local())
      .def(py::init(&swaps), py::keep_alive<1, 2>(), py::kw_only(), py::arg("pairs"), py::arg("kept"), py::arg("count"),
           py::arg("num_fixed"), py::arg("N"), py::arg("bonus"), py::arg("is_open"), py::arg("limits"))
      .def(
          "run",
          [](mrt::Swaps& swaps, int64_t most, const py::object& progress) {
            const Listening listening(progress);
            released([&] {
              swaps.run(most);
              return 0;
            });
          },
          py::kw_only(), py::arg("most"), py::arg("progress"))
      .def_property_readonly("kept", &mrt::Swaps::kept)
      .def_property_readonly("made", &mrt::Swaps::made)
      .def_property_readonly("tried", &mrt::Swaps::tried);
}

inline void bind_limits(py::module_& m) {
  py::class_<mrt::Limits>(m, "Limits", py::module_local())
      .def(py::init<>())
      .def(py::init(&limits), py::kw_only(), py::arg("N"), py::arg("k"), py::arg("cost"), py::arg("budget"),
           py::arg("is_by_ratio"), py::arg("label"), py::arg("cap"), py::arg("least"), py::arg("classes"))
      .def(
          "admitted",
          [](mrt::Limits limits, Address ids, int64_t count, int64_t most) {
            return limits.admitted(at<const int32_t>(ids), count, most);
          },
          py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("most"));
  py::enum_<mrt::Ended>(m, "Ended", py::module_local())
      .value("no", mrt::Ended::no)
      .value("full", mrt::Ended::full)
      .value("dry", mrt::Ended::dry)
      .value("enough", mrt::Ended::enough);
}

inline void copy_picks(const mrt::LazyGreedy& greedy, Address ids, Address gains) {
  std::copy(greedy.ids().begin(), greedy.ids().end(), at<int64_t>(ids));
  std::copy(greedy.gains().begin(), greedy.gains().end(), at<int64_t>(gains));
}

template <class Ground>
int64_t cover(Ground& ground, Address ids, int64_t count, Address rows, int64_t num_rows) {
  return released([&] { return ground.cover(at<const int32_t>(ids), count, at<const int32_t>(rows), num_rows); });
}

inline void bind_oracles(py::module_& m) {
  py::class_<PairWeights>(m, "PairWeights", py::module_local())
      .def(py::init(
               [](Address weight, Address quality, double maximum) { return PairWeights{weight, quality, maximum}; }),
           py::kw_only(), py::arg("weight"), py::arg("quality"), py::arg("maximum"));
  py::class_<mrt::LargeProblem>(m, "LargeProblem", py::module_local())
      .def(py::init(&large_problem), py::kw_only(), py::arg("candidates"), py::arg("covered"), py::arg("N"),
           py::arg("M"), py::arg("metric"), py::arg("radius"), py::arg("weights"), py::arg("is_ordered"),
           py::arg("list_bytes"), py::arg("threads"));
  py::class_<mrt::Oracle>(m, "Oracle", py::module_local()).def("reset", [](mrt::Oracle& oracle) {
    released([&] {
      oracle.reset();
      return 0;
    });
  });
  py::class_<mrt::PairSource>(m, "PairSource", py::module_local());
  m.attr("NEVER") = mrt::Oracle::NEVER;
  py::class_<PythonOracle, mrt::Oracle>(m, "PythonOracle", py::module_local())
      .def(py::init<py::object, int64_t>(), py::arg("asked"), py::arg("candidates"));
  py::class_<mrt::TableOracle, mrt::Oracle, mrt::PairSource>(m, "TableOracle", py::module_local())
      .def(py::init(&table_of_matrix), py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("shape"),
           py::arg("strides"), py::arg("scale"), py::arg("weights"), py::arg("threads"))
      .def("cover", &cover<mrt::TableOracle>, py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("rows"),
           py::arg("num_rows"))
      .def(
          "owners",
          [](const mrt::TableOracle& oracle, Address ids, int64_t count, int64_t covered, Address owner) {
            released([&] {
              oracle.owners(at<const int32_t>(ids), count, covered, at<int32_t>(owner));
              return 0;
            });
          },
          py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("covered"), py::arg("owner"))
      .def_static("bytes", &mrt::TableOracle::bytes, py::arg("candidates"), py::arg("covered"));
  py::class_<mrt::GraphOracle, mrt::Oracle, mrt::PairSource>(m, "GraphOracle", py::module_local())
      .def(py::init(&graph_oracle), py::kw_only(), py::arg("offsets"), py::arg("ids"), py::arg("values"),
           py::arg("shape"), py::arg("scale"), py::arg("has_self"), py::arg("weights"), py::arg("threads"))
      .def("cover", &cover<mrt::GraphOracle>, py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("rows"),
           py::arg("num_rows"));
}

inline void bind_features_oracle(py::module_& m) {
  py::class_<mrt::FeaturesOracle, mrt::Oracle, mrt::PairSource>(m, "FeaturesOracle", py::module_local())
      .def(py::init([](const mrt::LargeProblem& problem) {
             return released([&] { return std::make_unique<mrt::FeaturesOracle>(problem); });
           }),
           py::arg("problem"))
      .def_property_readonly("bad_rows",
                             [](const mrt::FeaturesOracle& oracle) {
                               return std::make_pair(oracle.bad_candidate(), oracle.bad_covered());
                             })
      .def("cover", &cover<mrt::FeaturesOracle>, py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("rows"),
           py::arg("num_rows"))
      .def("table", [](mrt::FeaturesOracle& oracle) { return released([&] { return oracle.table(); }); })
      .def(
          "owners",
          [](mrt::FeaturesOracle& oracle, Address ids, int64_t count, Address owner) {
            released([&] {
              oracle.owners(at<const int32_t>(ids), count, at<int32_t>(owner));
              return 0;
            });
          },
          py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("owner"));
}

inline void bind_large_selection(py::module_& m) {
  bind_oracles(m);
  bind_features_oracle(m);
  bind_limits(m);
  bind_swaps(m);
  py::class_<mrt::LazyGreedy>(m, "LazyGreedy", py::module_local())
      .def(py::init([](mrt::Oracle& oracle, Address bonus, Address is_open, const mrt::Limits& limits) {
             return std::make_unique<mrt::LazyGreedy>(oracle, at<const int64_t>(bonus), at<const uint8_t>(is_open),
                                                      limits);
           }),
           py::keep_alive<1, 2>(), py::arg("oracle"), py::kw_only(), py::arg("bonus"), py::arg("is_open"),
           py::arg("limits"))
      .def("sample", &mrt::LazyGreedy::sample, py::kw_only(), py::arg("seed"), py::arg("group_key"), py::arg("draws"))
      .def(
          "start",
          [](mrt::LazyGreedy& greedy, Address ids, int64_t count) {
            released([&] {
              greedy.start(at<const int32_t>(ids), count);
              return 0;
            });
          },
          py::kw_only(), py::arg("ids"), py::arg("count"))
      .def(
          "follow",
          [](mrt::LazyGreedy& greedy, Address ids, int64_t count, int64_t k) {
            released([&] {
              greedy.follow(at<const int32_t>(ids), count, k);
              return 0;
            });
          },
          py::kw_only(), py::arg("ids"), py::arg("count"), py::arg("k"))
      .def(
          "resume",
          [](mrt::LazyGreedy& greedy, Address ids, Address gains, int64_t count, int64_t bound) {
            return released(
                [&] { return greedy.resume(at<const int32_t>(ids), at<const int64_t>(gains), count, bound); });
          },
          py::kw_only(), py::arg("ids"), py::arg("gains"), py::arg("count"), py::arg("bound"))
      .def(
          "finish",
          [](mrt::LazyGreedy& greedy, int64_t k, bool is_quick) {
            released([&] {
              greedy.finish(k, is_quick);
              return 0;
            });
          },
          py::kw_only(), py::arg("k"), py::arg("is_quick"))
      .def("pick", &pick, py::kw_only(), py::arg("until"), py::arg("k"), py::arg("least"), py::arg("enough"),
           py::arg("progress"))
      .def("copy_picks", &copy_picks, py::kw_only(), py::arg("ids"), py::arg("gains"))
      .def_property_readonly("picked", [](const mrt::LazyGreedy& greedy) { return greedy.ids().size(); })
      .def_property_readonly("value", &mrt::LazyGreedy::value)
      .def_property_readonly("covered", &mrt::LazyGreedy::covered)
      .def_property_readonly("bound", &mrt::LazyGreedy::bound);
}

}  // namespace
