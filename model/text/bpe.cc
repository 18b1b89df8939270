#include "model/text/bpe.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "model/text/tokenizer.h"

namespace qlora {
namespace {

constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
// Up to here looking at every pair again is faster than a heap.
constexpr size_t kShort = 48;

}  // namespace

size_t Bpe::slot(uint64_t pair) const {
  const size_t mask = table_.size() - 1;
  size_t at = (pair * 0x9E3779B97F4A7C15u) >> 20 & mask;
  while (table_[at].pair != pair && table_[at].pair != kNone) at = (at + 1) & mask;
  return at;
}

const Bpe::Merge* Bpe::find(int32_t left, int32_t right) const {
  if (table_.empty()) return nullptr;
  const Merge& m = table_[slot(key(left, right))];
  return m.pair == kNone ? nullptr : &m;
}

void Bpe::grow(size_t slots) {
  std::vector<Merge> old(slots);
  old.swap(table_);
  for (const Merge& m : old)
    if (m.pair != kNone) table_[slot(m.pair)] = m;
}

void Bpe::reserve_merges(size_t count) {
  size_t slots = 64;
  while (slots < 2 * count) slots *= 2;
  if (slots > table_.size()) grow(slots);
}

void Bpe::add_merge(int32_t left, int32_t right, int32_t merged, int32_t rank) {
  reserve_merges(used_ + 1);
  Merge& m = table_[slot(key(left, right))];
  if (m.pair == kNone) ++used_;
  m = {key(left, right), rank, merged};
}

void Bpe::symbols_of(std::string_view word, std::vector<Symbol>& out) const {
  out.clear();
  bool after_unknown = false;
  for (uint32_t i = 0; i < word.size(); ++i) {
    const int32_t id = bytes_[static_cast<uint8_t>(word[i])];
    if (id >= 0) {
      out.push_back({id, i, i + 1});
    } else if (unknown_ >= 0) {
      if (after_unknown && fuse_unknown_)
        out.back().end = i + 1;
      else
        out.push_back({unknown_, i, i + 1});
    }
    after_unknown = id < 0;
  }
}

void Bpe::merge_short(std::vector<Symbol>& symbols) const {
  // pairs[i] is the merge of symbols i and i + 1.
  std::array<std::pair<int32_t, int32_t>, kShort> pairs;
  const auto look = [&](size_t i) {
    const Merge* m = find(symbols[i].id, symbols[i + 1].id);
    pairs[i] = m ? std::pair{m->rank, m->id} : std::pair{kNoRank, 0};
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) look(i);
  while (symbols.size() > 1) {
    const size_t last = symbols.size() - 1;
    size_t best = 0;
    for (size_t i = 1; i < last; ++i)
      if (pairs[i].first < pairs[best].first) best = i;
    if (pairs[best].first == kNoRank) return;
    symbols[best].id = pairs[best].second;
    symbols[best].end = symbols[best + 1].end;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::copy(pairs.begin() + static_cast<ptrdiff_t>(best) + 1, pairs.begin() + static_cast<ptrdiff_t>(last),
              pairs.begin() + static_cast<ptrdiff_t>(best));
    if (best > 0) look(best - 1);
    if (best + 1 < symbols.size()) look(best);
  }
}

void Bpe::merge_long(std::vector<Symbol>& symbols) const {
  const int32_t n = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> before(n), after(n);
  for (int32_t i = 0; i < n; ++i) before[i] = i - 1, after[i] = i + 1 < n ? i + 1 : -1;
  // (rank, position of the left symbol), lowest first. An entry whose pair has changed since is passed over.
  using Entry = std::pair<int32_t, int32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  const auto merge_at = [&](int32_t i) -> const Merge* {
    return i < 0 || after[i] < 0 ? nullptr : find(symbols[i].id, symbols[after[i]].id);
  };
  const auto offer = [&](int32_t i) {
    if (const Merge* m = merge_at(i)) queue.push({m->rank, i});
  };
  for (int32_t i = 0; i < n; ++i) offer(i);
  while (!queue.empty()) {
    const auto [rank, i] = queue.top();
    queue.pop();
    if (symbols[i].id < 0) continue;
    const Merge* m = merge_at(i);
    if (!m || m->rank != rank) continue;
    const int32_t gone = after[i];
    symbols[i].id = m->id;
    symbols[i].end = symbols[gone].end;
    symbols[gone].id = -1;
    after[i] = after[gone];
    if (after[i] >= 0) before[after[i]] = i;
    offer(before[i]);
    offer(i);
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.id < 0; });
}

void Bpe::encode(std::string_view word, size_t begin, size_t lead, std::vector<TokenSpan>& out) const {
  const auto place = [&](size_t i) { return static_cast<uint32_t>(begin + (i > lead ? i - lead : 0)); };
  if (!words_.empty()) {
    if (const auto found = words_.find(word); found != words_.end()) {
      out.push_back({found->second, place(0), place(word.size())});
      return;
    }
  }
  thread_local std::vector<Symbol> symbols;
  symbols_of(word, symbols);
  if (symbols.size() <= kShort)
    merge_short(symbols);
  else
    merge_long(symbols);
  for (const Symbol& s : symbols) out.push_back({s.id, place(s.begin), place(s.end)});
}

}  // namespace qlora
