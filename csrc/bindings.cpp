// The Python face of csrc: addresses, sizes and strides come in, sentences go out. The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bindings.h"
#include "common/float_state.h"
#include "common/interrupt.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "cross_entropy/cross_entropy.h"
#include "digest/problems.h"
#include "facility_location/facility_location.h"
#include "isa/path.h"
#include "linear_cross_entropy/gradients.h"
#include "neighbors/neighbors.h"
#include "similarity/similarity.h"
#include "tile/matmul_problem.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* COMPILER = "";  // clang's __VERSION__ names it
#else
constexpr const char* COMPILER = "gcc ";
#endif

// Called by the thread that entered the library, which gave up the interpreter: take it back for a moment.
bool python_signals() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Runs `body` without the interpreter lock; Ctrl-C and missing memory become Python's own exceptions.
template <class Body>
auto released(const Body& body) {
  try {
    const py::gil_scoped_release release;
    const mrt::FixedFloatState state;
    return body();
  } catch (const mrt::Interrupted&) {
    throw py::error_already_set();
  } catch (const mrt::OutOfMemory& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
    throw py::error_already_set();
  }
}

// `callback` (None: nobody) hears how far the call is: now and then, and at its end.
class Listening {
 public:
  explicit Listening(const py::object& callback) {
    if (callback.is_none()) return;
    progress_ = [callback](double fraction) {
      const py::gil_scoped_acquire gil;
      callback(fraction);
    };
    mrt::set_progress(&progress_);
  }
  ~Listening() { mrt::set_progress(nullptr); }
  void finish() const {
    if (progress_) progress_(1.0);
  }

 private:
  mrt::Progress progress_;
};

// Address, type, strides of batch, row and column, rows per group.
using Batch = std::tuple<Address, std::string, int64_t, int64_t, int64_t, int64_t>;

mrt::Matrices matrices(const Batch& rows, int64_t D) {
  const auto& [address, dtype, batch_stride, row_stride, column_stride, rows_per_group] = rows;
  return {features(address, dtype, row_stride, column_stride, D), batch_stride, rows_per_group};
}

mrt::SimilarityProblem similarity_problem(const Batch& x, const std::optional<Batch>& y, Address offsets, int64_t B,
                                          int64_t D, const std::string& metric, double gamma) {
  const mrt::Matrices rows = matrices(x, D);
  return {B,
          at<const int64_t>(offsets),
          rows,
          y ? matrices(*y, D) : rows,
          !y,
          metric_of(metric),
          static_cast<float>(gamma)};
}

std::pair<int64_t, int64_t> similarity(const Batch& x, const std::optional<Batch>& y, Address offsets, int64_t B,
                                       int64_t D, const std::string& metric, double gamma, Address s, int threads) {
  const mrt::SimilarityProblem problem = similarity_problem(x, y, offsets, B, D, metric, gamma);
  const mrt::BadFeatures bad = released([&] { return mrt::similarity(problem, at<void>(s), threads); });
  return {bad.x, bad.y};
}

void similarity_gradient(const Batch& x, const std::optional<Batch>& y, Address offsets, int64_t B, int64_t D,
                         const std::string& metric, double gamma, Address grad, Address dx, Address dy, int threads) {
  const mrt::SimilarityProblem problem = similarity_problem(x, y, offsets, B, D, metric, gamma);
  released([&] { mrt::similarity_gradient(problem, at<const void>(grad), at<void>(dx), at<void>(dy), threads); });
}

int64_t facility_location_grouped(const SelectionArguments& arguments, const std::array<Address, 9>& out, int threads) {
  const mrt::SelectionProblem problem = selection_problem(arguments);
  const mrt::SelectionResult result = selection_result(out);
  return released([&] { return mrt::select_groups(problem, result, threads); });
}

double cross_entropy_rows(Address logits, Address gradient, const std::string& dtype, int64_t T, int64_t V,
                          int64_t logits_stride, int64_t gradient_stride, Address targets, Address target_offsets,
                          int64_t ignore_index, Address weight, double uniform_weight, Address entropy_weight,
                          double label_smoothing, double z_loss, double softcap, double scale, int64_t classes,
                          const std::vector<Address>& out, Address given_lse, int threads) {
  const mrt::LogitRows rows{at<const void>(logits),
                            at<void>(gradient),
                            dtype_of(dtype),
                            T,
                            V,
                            logits_stride,
                            gradient_stride,
                            at<const int64_t>(targets),
                            at<const int64_t>(target_offsets),
                            ignore_index,
                            at<const float>(weight),
                            static_cast<float>(uniform_weight),
                            at<const float>(entropy_weight)};
  const mrt::LossOptions options{label_smoothing, z_loss, softcap, scale, classes};
  const mrt::RowResults results{at<float>(out.at(0)), at<float>(out.at(1)), at<float>(out.at(2)),
                                at<int64_t>(out.at(3)), at<double>(out.at(4))};
  return released(
      [&] { return mrt::cross_entropy_rows(rows, options, results, at<const double>(given_lse), threads); });
}

mrt::Precision precision_of(const std::string& name) {
  return named<mrt::Precision>(
      "precision", name,
      {{"exact", mrt::Precision::exact}, {"int16", mrt::Precision::int16}, {"float32", mrt::Precision::float32}});
}

// x and y are (address, row stride, column stride, rows); y 0: x itself.
using Rows = std::array<int64_t, 4>;

mrt::Features features(const Rows& rows, const std::string& dtype, int64_t D) {
  return features(static_cast<Address>(rows[0]), dtype, rows[1], rows[2], D);
}

py::tuple neighbors(const Rows& x, const std::optional<Rows>& y, const std::string& dtype, int64_t D, int64_t k,
                    const std::string& metric, const std::string& precision, double radius, bool exclude_self,
                    Address group_x, Address group_y, Address ids, Address scores, const py::object& progress,
                    int threads) {
  const Rows& other = y ? *y : x;
  const mrt::NeighborsProblem problem{features(x, dtype, D),
                                      features(other, dtype, D),
                                      x[3],
                                      other[3],
                                      !y,
                                      k,
                                      metric_of(metric),
                                      precision_of(precision),
                                      radius,
                                      exclude_self,
                                      at<const int64_t>(group_x),
                                      at<const int64_t>(group_y)};
  const mrt::NeighborsResult result{at<int64_t>(ids), at<float>(scores)};
  const Listening listening(progress);
  const mrt::BadRows bad = released([&] { return mrt::neighbors(problem, result, threads); });
  listening.finish();
  return py::make_tuple(bad.x, bad.y);
}

int64_t components(const Rows& x, const std::string& dtype, int64_t D, double threshold, double radius, Address labels,
                   const py::object& progress, int threads) {
  const mrt::Features rows = features(x, dtype, D);
  const Listening listening(progress);
  const int64_t bad =
      released([&] { return mrt::components(rows, x[3], threshold, radius, at<int64_t>(labels), threads); });
  listening.finish();
  return bad;
}

// One pass over the pairs of candidates x with the rows y that they cover. `want`: "table" (t and gains), "gains",
// "largest" or "sparse"; returns the offsets, ids and values of "sparse".
py::tuple stream_pairs(const Rows& x, const Rows& y, const std::string& dtype, int64_t D, const std::string& metric,
                       double radius, Address weight, Address quality, double maximum, Address best,
                       const std::string& want, Address t, Address out, int threads) {
  const mrt::StreamProblem problem{
      features(x, dtype, D),   features(y, dtype, D),    x[3],   y[3], metric_of(metric), radius,
      at<const float>(weight), at<const float>(quality), maximum};
  mrt::StreamResult::Sparse sparse;
  const auto wanted = named<mrt::StreamResult>("want", want,
                                               {{"table", {at<uint16_t>(t), at<int64_t>(out)}},
                                                {"gains", {nullptr, at<int64_t>(out)}},
                                                {"largest", {nullptr, nullptr, at<uint16_t>(out)}},
                                                {"sparse", {nullptr, nullptr, nullptr, &sparse}}});
  const mrt::StreamBadRows bad =
      released([&] { return mrt::stream_pairs(problem, at<const uint16_t>(best), wanted, threads); });
  return py::make_tuple(bad.candidates, bad.covered, sparse.offsets, sparse.ids, sparse.values);
}

// Address, type, strides of row and column.
using Operand = std::tuple<Address, std::string, int64_t, int64_t>;

mrt::Features operand(const Operand& x, int64_t K) {
  const auto& [address, dtype, row_stride, column_stride] = x;
  return features(address, dtype, row_stride, column_stride, K);
}

// out [M, N] = a [M, K] b [N, K]^T; out is (address, stride), begins is "zero", "bias" or "out".
void matmul(const Operand& a, const Operand& b, const std::array<int64_t, 3>& sizes,
            const std::pair<Address, int64_t>& out, Address bias, bool adds, bool is_half, Address workspace,
            int threads) {
  const auto [M, N, K] = sizes;
  const mrt::MatmulProblem problem{operand(a, K), operand(b, K),         M,   N, K, is_half, at<float>(out.first),
                                   out.second,    at<const float>(bias), adds};
  released([&] {
    mrt::matmul(problem, at<void>(workspace), threads);
    return 0;
  });
}

// total [V] += the sums of the columns of z [C, V], which is (address, stride).
void add_column_sums(const std::pair<Address, int64_t>& z, const std::array<int64_t, 2>& sizes, Address total,
                     int threads) {
  released([&] {
    mrt::add_column_sums(at<const float>(z.first), z.second, sizes[0], sizes[1], at<float>(total), threads);
    return 0;
  });
}

void scale(Address in, Address out, const std::string& dtype, int64_t count, Address factor, int threads) {
  const mrt::DType type = dtype_of(dtype);
  released([&] {
    mrt::scale(at<const float>(in), at<void>(out), type, count, factor == 0 ? 1.0f : *at<const float>(factor), threads);
    return 0;
  });
}

// Does that many operations in registers, shared among the threads: the least time that a product can take.
void multiply_only(const std::string& dtype, int64_t flops, int threads) {
  const auto multiply = named<int64_t (*)(int64_t)>("dtype", dtype,
                                                    {{"int16", mrt::tile_kernels().multiply_int16},
                                                     {"float32", mrt::tile_kernels().multiply_float32},
                                                     {"bfloat16", mrt::tile_kernels().multiply_bfloat16}});
  constexpr int64_t PARTS = 64;
  released([&] {
    mrt::parallel_for(PARTS, 1, threads, [&](mrt::Worker&, int64_t) { multiply(flops / PARTS); });
    return 0;
  });
}

// The problems that `mrtkern verify` selects from; weights: addresses of weight, quality and bonus.
void digest_sizes(int kind, int64_t block, int64_t count, Address offsets, Address k) {
  mrt::digest::make_sizes(static_cast<mrt::digest::Kind>(kind), block, count, at<int64_t>(offsets), at<int64_t>(k));
}

void digest_rows(int kind, int64_t block, int64_t count, Address offsets, Address x,
                 const std::array<Address, 3>& weights) {
  const auto [weight, quality, bonus] = weights;
  mrt::digest::make_rows(static_cast<mrt::digest::Kind>(kind), block, count, at<const int64_t>(offsets), at<float>(x),
                         at<float>(weight), at<float>(quality), at<float>(bonus));
}

py::list isas() {
  const mrt::Path* all[mrt::MOST_PATHS + 1];
  mrt::available_paths(all);
  py::list names;
  for (const mrt::Path** path = all; *path != nullptr; ++path) names.append((*path)->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of mrtkern; the public functions call them through mrtkern/ops/<op>/cpu.py.";
  mrt::set_interrupt_poll(python_signals);
  m.def("isa", [] { return mrt::path_in_use().name; }, "Instruction set in use.");
  m.def("isas", &isas, "Instruction sets that this machine has, widest first.");
  m.def("hardware_threads", [] { return std::thread::hardware_concurrency(); });
  m.def("built_with", [] { return std::string(COMPILER) + __VERSION__; }, "Version of the compiler.");
  m.attr("LARGEST_GROUP") = mrt::LARGEST_GROUP;
  m.attr("MATMUL_WORKSPACE") = mrt::MATMUL_WORKSPACE;
  m.def("matmul", &matmul, py::arg("a"), py::arg("b"), py::arg("sizes"), py::arg("out"), py::arg("bias"),
        py::arg("adds"), py::arg("is_half"), py::arg("workspace"), py::arg("threads"));
  m.def("add_column_sums", &add_column_sums, py::arg("z"), py::arg("sizes"), py::arg("total"), py::arg("threads"));
  m.def("scale", &scale, py::arg("gradient"), py::arg("out"), py::arg("dtype"), py::arg("count"), py::arg("factor"),
        py::arg("threads"));
  m.def("similarity", &similarity);
  m.def("similarity_gradient", &similarity_gradient);
  m.def("multiply_only", &multiply_only, "The peak of this machine: operations with nothing to load.");
  m.def("stream_pairs", &stream_pairs);
  m.def("neighbors", &neighbors);
  m.def("components", &components);
  m.def("facility_location_grouped", &facility_location_grouped);
  m.def("cross_entropy_rows", &cross_entropy_rows);
  m.def("digest_sizes", &digest_sizes);
  m.def("digest_rows", &digest_rows);
}
