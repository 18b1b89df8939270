#include "train/data/reader.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <optional>
#include <system_error>
#include <vector>

#include "memory/error.h"
#include "memory/thread_pool.h"

namespace qlora {
namespace {

constexpr int64_t kMostBlockRows = 256;

void add_piece(Dataset& out, std::span<const int32_t> ids, std::span<const uint8_t> has_loss,
               uint64_t place) {
  std::vector<uint8_t> mask(has_loss.begin(), has_loss.end());
  mask[0] = 0;  // nothing of this sample predicts its first token
  if (std::find(mask.begin(), mask.end(), uint8_t{1}) == mask.end()) {
    ++out.counts.dropped_unlabelled;
    return;
  }
  out.add(ids, mask, place);
}

void add_row(Dataset& out, EncodedRow row, int64_t index, const ReadOptions& o, const std::string& where) {
  const auto limit = static_cast<size_t>(o.max_seq_length);
  const uint64_t place = static_cast<uint64_t>(index) << 32;
  ++out.counts.rows;
  if (row.ids.size() > limit && !row.may_continue) {
    if (o.overlong == Overlong::error)
      fail(Category::input, where, ": has ", row.ids.size(), " tokens, over --max-seq-length ", limit,
           "; raise it, or choose --overlong truncate or drop");
    if (o.overlong == Overlong::drop) {
      ++out.counts.dropped_overlong;
      return;
    }
    ++out.counts.truncated;
    row.ids.resize(limit);
    row.has_loss.resize(limit);
  }
  if (row.ids.size() > UINT32_MAX) fail(Category::input, where, ": has more than 2^32 tokens; split it");
  if (row.ids.empty()) {
    ++out.counts.dropped_unlabelled;
    return;
  }
  const std::span<const int32_t> ids(row.ids);
  const std::span<const uint8_t> mask(row.has_loss);
  for (size_t begin = 0; begin < ids.size();) {
    size_t count = std::min(limit, ids.size() - begin);
    if (ids.size() - begin - count == 1 && count > 2) --count;
    add_piece(out, ids.subspan(begin, count), mask.subspan(begin, count), place + begin);
    out.counts.continued += begin > 0;
    begin += count;
  }
}

// The rows in blocks, in the data's order. Throws what is wrong with the first broken row.
std::vector<Dataset> encode_blocks(const DataRows& rows, const RowEncoder& encoder, const ReadOptions& o,
                                   DatasetFormat format) {
  // Some blocks for each thread, so that none is left with the last of them.
  const int64_t block = std::clamp<int64_t>(rows.size() / (8 * o.threads), 1, kMostBlockRows);
  std::vector<Dataset> parts((rows.size() + block - 1) / block);
  std::vector<std::exception_ptr> errors(parts.size());
  std::atomic<int64_t> broken{rows.size()};  // the first block with an error so far: none after it matters
  auto encode = [&](int64_t b, int) {
    if (b > broken.load()) return;
    try {
      for (int64_t i = b * block; i < std::min((b + 1) * block, rows.size()); ++i) {
        const std::string where = rows.where(i);
        add_row(parts[b], encode_row(rows.row(i), format, o.columns, encoder, where), i, o, where);
      }
    } catch (...) {
      errors[b] = std::current_exception();
      int64_t first = broken.load();
      while (b < first && !broken.compare_exchange_weak(first, b)) continue;
    }
  };
  std::optional<ThreadPool> pool;
  try {
    pool.emplace(o.threads);
  } catch (const std::system_error&) {  // no room for threads: slower, and the same rows
    pool.emplace(1);
  }
  pool->run(static_cast<int64_t>(parts.size()), encode);
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  return parts;
}

[[noreturn]] void fail_empty(const DataRows& rows, const Dataset& out, DatasetFormat format) {
  if (out.counts.dropped_overlong == out.counts.rows)
    fail(Category::input, rows.path(), ": all ", out.counts.rows,
         " rows are longer than --max-seq-length; raise it, or choose --overlong truncate");
  fail(Category::input, rows.path(), ": no label is left in any of its ", out.counts.rows, " rows (read as ",
       name_of(format), "); check --dataset-format, --loss-on and --max-seq-length");
}

}  // namespace

Overlong parse_overlong(std::string_view name) {
  if (name == "truncate") return Overlong::truncate;
  if (name == "drop") return Overlong::drop;
  if (name == "error") return Overlong::error;
  fail(Category::usage, "--overlong ", name, ": unknown; choose truncate, drop or error");
}

DatasetFormat format_of(const DataRows& rows, const ReadOptions& o) {
  return format_of(o.format, rows.row(0), o.columns, rows.where(0));
}

Dataset read_dataset(const DataRows& rows, const RowEncoder& encoder, const ReadOptions& o) {
  if (o.max_seq_length < 2)
    fail(Category::usage, "--max-seq-length ", o.max_seq_length, ": must be at least 2");
  const DatasetFormat format = format_of(rows, o);
  Dataset out = Dataset::joined(encode_blocks(rows, encoder, o, format));
  check_keys(rows, o.columns);
  out.name = rows.path();
  out.sha256 = rows.sha256();
  if (out.size() == 0) fail_empty(rows, out, format);
  return out;
}

}  // namespace qlora
