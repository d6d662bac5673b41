// cross_entropy on the CPU: rows are shared among threads; per row the scalars in float64, the vectors by the kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "cross_entropy/cross_entropy_kernels.h"

namespace mrt {

namespace {

constexpr int64_t GRAIN = 1 << 17;       // logits claimed at a time: about 20 us of work
constexpr int64_t ONE_THREAD = 1 << 16;  // logits that are done before another thread is awake

// One target of a row.
struct Entry {
  int64_t y, entry;
  double weight, u, slope;  // u as the sums over the row have it, so that lse >= u; slope: du/dz
};

// What one thread keeps between rows.
struct Workspace {
  std::vector<Entry> entries;
  Buffer buffer;
  Exponentials exponentials = {nullptr, nullptr};
};

// A NaN as kernels want it: with a payload of zeros.
float single(double value) {
  return value == value ? static_cast<float>(value) : std::numeric_limits<float>::quiet_NaN();
}

class Rows {
 public:
  Rows(const LogitRows& rows, const LossOptions& options, const RowResults& results, const double* given_lse)
      : rows_(rows),
        options_(options),
        results_(results),
        given_lse_(given_lse),
        element_(rows.dtype == DType::float32 ? 4 : 2),
        wants_results_(results.nll || results.weighted || results.entropy || results.argmax || results.lse),
        wants_entropy_(results.entropy || rows.entropy_weight),
        transform_{0.0f, static_cast<float>(options.scale)} {
    if (options.softcap != 0.0)
      transform_ = {static_cast<float>(1.0 / options.softcap), static_cast<float>(options.scale * options.softcap)};
  }

  // Everything about row t; returns its part of L.
  double run(int64_t t, Workspace& workspace) const {
    std::vector<Entry>& entries = workspace.entries;
    const double h = rows_.entropy_weight ? rows_.entropy_weight[t] : 0.0;
    read_entries(t, entries);
    double mass = 0.0;
    bool has_weight = h != 0.0;
    for (const Entry& e : entries) {
      mass += e.weight;
      has_weight = has_weight || e.weight != 0.0;
    }
    if (!has_weight && (entries.empty() || !wants_results_)) {
      clear_gradient(t);
      return skip(t);
    }
    read_logits(t, entries);
    const bool has_gradient = has_weight && rows_.gradient != nullptr;
    Exponentials exponentials = {nullptr, nullptr};
    if (has_gradient && h == 0.0 && options_.softcap == 0.0 && !given_lse_) exponentials = room(t, workspace);
    const Row row = statistics(t, exponentials);
    const double loss = write_results(t, row, entries) + (h != 0.0 ? h * row.entropy : 0.0);
    if (has_gradient) write_gradient(t, row, mass, h, exponentials, entries);
    if (!has_weight) clear_gradient(t);  // not before: the gradient may be the logits
    return loss;
  }

 private:
  struct Row {
    double largest, sum, lse, entropy, below;  // below: lse - mean_v u_v
  };

  const void* logits(int64_t t) const {
    return static_cast<const char*>(rows_.logits) + t * rows_.logits_stride * element_;
  }
  void* gradient(int64_t t) const { return static_cast<char*>(rows_.gradient) + t * rows_.gradient_stride * element_; }
  int64_t first_entry(int64_t t) const { return rows_.target_offsets ? rows_.target_offsets[t] : t; }

  void clear_gradient(int64_t t) const {
    if (rows_.gradient) std::memset(gradient(t), 0, rows_.V * element_);
  }

  // du/dz of one logit, in float64.
  double slope(float z) const {
    if (options_.softcap == 0.0) return options_.scale;
    const double t = std::tanh(z / options_.softcap);
    return options_.scale * (1.0 + t) * (1.0 - t);
  }

  // Valid targets, in order; the results of the others are zero.
  void read_entries(int64_t t, std::vector<Entry>& entries) const {
    entries.clear();
    for (int64_t i = first_entry(t); i < first_entry(t + 1); ++i) {
      const int64_t y = rows_.targets[i];
      if (results_.nll) results_.nll[i] = 0.0f;
      if (results_.weighted) results_.weighted[i] = 0.0f;
      if (y == rows_.ignore_index) continue;
      Entry e = {y, i, rows_.weight ? rows_.weight[i] : rows_.uniform_weight, 0.0, 0.0};
      entries.push_back(e);
    }
  }

  void read_logits(int64_t t, std::vector<Entry>& entries) const {
    for (Entry& e : entries) {
      if (e.y < 0) continue;
      const Logit found = cross_entropy_kernels().row_read(logits(t), rows_.dtype, e.y, transform_);
      e.u = found.u;
      e.slope = slope(found.z);
    }
    if (results_.argmax) results_.argmax[t] = cross_entropy_kernels().row_argmax(logits(t), rows_.dtype, rows_.V);
  }

  // Where the exponentials of row t go: into its gradient if they have the type for it.
  Exponentials room(int64_t t, Workspace& workspace) const {
    const int64_t num_blocks = (rows_.V + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    const int64_t held = rows_.dtype == DType::float32 ? 0 : rows_.V;
    if (workspace.buffer.size() == 0) {
      workspace.buffer = Buffer((held + num_blocks) * sizeof(float) + 1);
      auto* e = reinterpret_cast<float*>(workspace.buffer.data());
      workspace.exponentials = {e, e + held};
    }
    Exponentials found = workspace.exponentials;
    if (held == 0) found.e = static_cast<float*>(gradient(t));
    return found;
  }

  double skip(int64_t t) const {
    if (results_.entropy) results_.entropy[t] = 0.0f;
    if (results_.argmax) results_.argmax[t] = -1;
    if (results_.lse) results_.lse[t] = 0.0;
    return 0.0;
  }

  Row statistics(int64_t t, Exponentials exponentials) const {
    Row row = {};
    if (given_lse_ && !wants_entropy_) {
      row.lse = given_lse_[t];
      row.largest = static_cast<float>(row.lse);
      row.sum = std::exp(row.lse - row.largest);
      return row;
    }
    const bool wants_mean = options_.label_smoothing != 0.0;
    const RowStatistics found = cross_entropy_kernels().row_statistics(logits(t), rows_.dtype, rows_.V, transform_,
                                                                       wants_entropy_ || wants_mean, exponentials);
    row.largest = found.largest;
    row.sum = found.sum;
    row.lse = found.largest + std::log(found.sum);
    row.entropy = std::log(found.sum) - found.weighted / found.sum;
    row.below = std::log(found.sum) - found.plain / static_cast<double>(rows_.V);
    return row;
  }

  // What the caller wanted to know; returns sum_e w_e l_e.
  double write_results(int64_t t, const Row& row, const std::vector<Entry>& entries) const {
    if (results_.entropy) results_.entropy[t] = static_cast<float>(row.entropy);
    if (results_.lse) results_.lse[t] = row.lse;
    const double smoothing = options_.label_smoothing;
    double loss = 0.0;
    for (const Entry& e : entries) {
      const double nll = row.lse - e.u;
      const double smoothed = smoothing == 0.0 ? nll : (1.0 - smoothing) * nll + smoothing * row.below;
      const double weighted = e.weight == 0.0 ? 0.0 : e.weight * (smoothed + options_.z_loss * row.lse * row.lse);
      if (results_.nll) results_.nll[e.entry] = static_cast<float>(nll);
      if (results_.weighted) results_.weighted[e.entry] = static_cast<float>(weighted);
      loss += weighted;
    }
    return loss;
  }

  void write_gradient(int64_t t, const Row& row, double mass, double h, Exponentials exponentials,
                      std::vector<Entry>& entries) const {
    const double above = row.largest - row.lse;
    const double factor = mass * (1.0 + 2.0 * options_.z_loss * row.lse) - (h != 0.0 ? h * (above + row.entropy) : 0.0);
    const int64_t classes = options_.classes != 0 ? options_.classes : rows_.V;
    const double constant = mass * options_.label_smoothing / static_cast<double>(classes);
    const GradientRule rule = {static_cast<float>(row.largest), single(factor / row.sum), single(-h / row.sum),
                               single(constant)};
    if (exponentials.e) {
      cross_entropy_kernels().row_scale(logits(t), gradient(t), rows_.dtype, rows_.V, transform_, rule, exponentials);
    } else {
      cross_entropy_kernels().row_gradient(logits(t), gradient(t), rows_.dtype, rows_.V, transform_, rule);
    }
    if (entries.size() > 1)  // equal targets together, each group in the order of its entries
      std::sort(entries.begin(), entries.end(),
                [](const Entry& a, const Entry& b) { return a.y != b.y ? a.y < b.y : a.entry < b.entry; });
    for (size_t i = 0; i < entries.size();) {
      const Entry& e = entries[i];
      double total = 0.0;
      for (; i < entries.size() && entries[i].y == e.y; ++i) total += entries[i].weight;
      if (e.y < 0) continue;
      const double p = std::exp(e.u - row.lse);
      const double pull = h != 0.0 && p > 0.0 ? factor - h * (e.u - row.largest) : factor;  // 0 (-infinity) is NaN
      const double du = p * pull - constant - (1.0 - options_.label_smoothing) * total;
      cross_entropy_kernels().row_write(gradient(t), rows_.dtype, e.y, single(du * e.slope));
    }
  }

  const LogitRows& rows_;
  const LossOptions& options_;
  const RowResults& results_;
  const double* given_lse_;
  const int64_t element_;
  const bool wants_results_, wants_entropy_;
  Transform transform_;
};

}  // namespace

double cross_entropy_rows(const LogitRows& rows, const LossOptions& options, const RowResults& results,
                          const double* given_lse, int threads) {
  const Rows work(rows, options, results, given_lse);
  if (rows.gradient && rows.gradient != rows.logits && rows.gradient_stride == rows.V)
    advise_huge_pages(rows.gradient, rows.T * rows.V * (rows.dtype == DType::float32 ? 4 : 2));
  if (rows.T * rows.V <= ONE_THREAD) threads = 1;
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(rows.V, 1));
  std::vector<double> losses(rows.T);
  std::vector<Workspace> workspaces(std::max(threads, 1));
  parallel_for(rows.T, grain, threads,
               [&](Worker& worker, int64_t t) { losses[t] = work.run(t, workspaces[worker.index()]); });
  double total = 0.0;
  for (double loss : losses) total += loss;
  return total;
}

}  // namespace mrt
