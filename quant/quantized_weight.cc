#include "quant/quantized_weight.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <numeric>
#include <vector>

#include "memory/thread_pool.h"
#include "quant/blockwise8.h"
#include "quant/codebook.h"
#include "quant/int8.h"
#include "quant/quantize4.h"

namespace qlora {
namespace {

constexpr int64_t kChunk = 1 << 16;  // elements a task decodes at once: 256 KiB stay in the second cache

int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

bool is_4bit(Format f) { return f == Format::nf4 || f == Format::fp4; }

void require_spec(const QuantizedSpec& spec) {
  if (spec.format == Format::int8) return;
  check(is_4bit(spec.format), "quantizing to a format that is only read");
  const int b = spec.block_size;
  if (b < 32 || b > 4096 || (b & (b - 1)) != 0)
    fail(Category::usage, "block size ", b, " is none of 32, 64, 128 ... 4096; choose one of them");
}

// The work of one matrix, cut into tasks that write disjoint parts: [first, last) in elements, whole blocks.
struct Job {
  std::string_view name;
  const QuantizedSpec& spec;
  int64_t rows, cols;
  const RowReader& read;
  uint8_t* data;
  float* absmax;

  int64_t elements() const { return rows * cols; }
  // Elements of a task: whole blocks and, where that is small, whole rows, so that no row is read twice.
  int64_t chunk() const {
    if (!is_4bit(spec.format)) return std::max<int64_t>(1, kChunk / cols) * cols;
    const int64_t unit = cols / std::gcd<int64_t>(cols, spec.block_size) * spec.block_size;
    if (unit <= kChunk || unit == cols) return std::max<int64_t>(1, kChunk / unit) * unit;
    return divide_up(std::max(kChunk, cols), spec.block_size) * spec.block_size;
  }
  int64_t most_rows(int64_t chunk) const { return std::min(rows, chunk / cols + 2); }
  void run(int64_t first, int64_t last, float* scratch) const;
};

[[noreturn]] void refuse(const Job& job, int64_t element, float value) {
  fail(Category::input, job.name, ": element [", element / job.cols, ", ", element % job.cols, "] is ", value,
       job.spec.format == Format::int8 ? ", which fp16 cannot hold" : ", which no block can hold",
       "; repair the weights or leave this tensor unquantized");
}

void Job::run(int64_t first, int64_t last, float* scratch) const {
  const int64_t row = first / cols, end_row = divide_up(last, cols);
  read(row, end_row - row, scratch);
  if (is_4bit(spec.format)) {
    const float* values = scratch + (first - row * cols);
    const int64_t bad = quantize4(spec.format, values, last - first, spec.block_size, data + first / 2,
                                  absmax + first / spec.block_size);
    if (bad >= 0) refuse(*this, first + bad, values[bad]);
    return;
  }
  for (int64_t r = row; r < end_row; ++r) {
    const float* values = scratch + (r - row) * cols;
    const int64_t bad =
        quantize_int8_row(values, cols, reinterpret_cast<int8_t*>(data) + r * cols, absmax + r);
    if (bad >= 0) refuse(*this, r * cols + bad, values[bad]);
  }
}

// Runs every task. A task of the pool must not throw: the exception of the lowest one is kept, tasks above it
// are skipped, and it is thrown again afterwards.
void run_all(const Job& job, int threads) {
  const int64_t chunk = job.chunk(), tasks = divide_up(job.elements(), chunk);
  const int workers = static_cast<int>(std::clamp<int64_t>(tasks, 1, std::max(1, threads)));
  std::vector<std::vector<float>> scratch(static_cast<size_t>(workers));
  for (auto& s : scratch) s.resize(static_cast<size_t>(job.most_rows(chunk) * job.cols));
  std::atomic<int64_t> failed{tasks};
  std::exception_ptr error;
  std::mutex mutex;
  auto task = [&](int64_t t, int worker) {
    if (t > failed) return;
    try {
      job.run(t * chunk, std::min(job.elements(), (t + 1) * chunk),
              scratch[static_cast<size_t>(worker)].data());
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (t < failed) {
        failed = t;
        error = std::current_exception();
      }
    }
  };
  ThreadPool(workers).run(tasks, task);
  if (error) std::rethrow_exception(error);
}

}  // namespace

QuantizedSizes sizes_of(const QuantizedSpec& spec, int64_t rows, int64_t cols) {
  require_spec(spec);
  int64_t n = 0;
  // A quarter of the range, so that bytes() cannot overflow either.
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &n) || n > INT64_MAX / 8)
    fail(Category::input, "a matrix [", rows, ", ", cols, "] has no size in memory; repair its shape");
  if (spec.format == Format::int8) return {.data = n, .absmax = rows};
  const int64_t blocks = divide_up(n, spec.block_size);
  if (!spec.double_quant) return {.data = divide_up(n, 2), .absmax = blocks};
  return {
      .data = divide_up(n, 2), .absmax_codes = blocks, .nested_absmax = divide_up(blocks, int64_t{kBlock8})};
}

WeightView view_of(const QuantizedSpec& spec, int64_t rows, int64_t cols, const QuantizedParts& parts) {
  WeightView view;
  view.format = spec.format;
  view.rows = rows;
  view.cols = cols;
  view.data = parts.data;
  view.block_size = spec.block_size;
  if (sizes_of(spec, rows, cols).absmax_codes == 0) {
    view.absmax = parts.absmax;
    return view;
  }
  view.absmax_codes = parts.absmax_codes;
  view.nested_absmax = parts.nested_absmax;
  view.code_map = dynamic_map(true).data();
  return view;
}

WeightView quantize_matrix(std::string_view name, const QuantizedSpec& spec, int64_t rows, int64_t cols,
                           const RowReader& read, const QuantizedParts& parts, int threads) {
  const QuantizedSizes sizes = sizes_of(spec, rows, cols);
  const bool nested = sizes.absmax_codes > 0;
  std::vector<float> scales(static_cast<size_t>(sizes.absmax_codes));
  const Job job{
      name, spec, rows, cols, read, static_cast<uint8_t*>(parts.data), nested ? scales.data() : parts.absmax};
  if (rows > 0 && cols > 0) run_all(job, threads);

  WeightView view = view_of(spec, rows, cols, parts);
  if (!nested) return view;
  view.nested_offset = absmax_offset(scales.data(), sizes.absmax_codes);
  quantize_absmax(scales.data(), sizes.absmax_codes, view.nested_offset, parts.absmax_codes,
                  parts.nested_absmax);
  return view;
}

}  // namespace qlora
