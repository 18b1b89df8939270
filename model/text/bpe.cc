#include "model/text/bpe.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <queue>

#include "model/text/tokenizer.h"

namespace qlora {
namespace {

constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
// Up to here looking at every pair again is faster than a heap.
constexpr size_t kShort = 48;

// A word of at most 16 bytes and 4 tokens that cover it.
struct KnownWord {
  std::array<char, 16> bytes;
  uint8_t size = 0;  // 0: none; no word is empty
  uint8_t count;
  std::array<uint8_t, 4> ends;
  std::array<int32_t, 4> ids;

  bool is(std::string_view word) const {
    return size == word.size() && std::memcmp(bytes.data(), word.data(), size) == 0;
  }
  template <class Symbols>
  void remember(std::string_view word, const Symbols& symbols) {
    if (symbols.size() > ids.size()) return;
    uint32_t at = 0;  // bytes that no token stands for leave gaps, which ends cannot tell
    for (const auto& s : symbols) {
      if (s.begin != at) return;
      at = s.end;
    }
    std::memcpy(bytes.data(), word.data(), word.size());
    size = static_cast<uint8_t>(word.size());
    count = static_cast<uint8_t>(symbols.size());
    for (size_t i = 0; i < symbols.size(); ++i) {
      ends[i] = static_cast<uint8_t>(symbols[i].end);
      ids[i] = symbols[i].id;
    }
  }
};

// 320 KiB a thread, half of a second level cache: a place for each hash, taken by the word that came last.
class KnownWords {
 public:
  uint64_t owner = 0;
  // The only place where `word` can be; null for one that is too long.
  KnownWord* find(std::string_view word) {
    if (word.empty() || word.size() > std::tuple_size_v<decltype(KnownWord::bytes)>) return nullptr;
    uint64_t halves[2] = {};
    std::memcpy(halves, word.data(), word.size());
    const uint64_t hash = (halves[0] ^ (halves[1] * 0x9E3779B97F4A7C15u + word.size())) * 0xC2B2AE3D27D4EB4Fu;
    return &places_[(hash ^ hash >> 29) * 0x165667B19E3779F9u >> (64 - kBits)];
  }
  void clear() { places_.assign(size_t{1} << kBits, {}); }

 private:
  static constexpr int kBits = 13;
  std::vector<KnownWord> places_;
};

KnownWords& known_words(uint64_t owner) {
  thread_local KnownWords words;
  if (words.owner != owner) {
    words.clear();
    words.owner = owner;
  }
  return words;
}

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

void Bpe::seal() {
  static std::atomic<uint64_t> made{0};
  sealed_ = ++made;
}

void Bpe::tokens_of(std::string_view word, std::vector<Symbol>& out) const {
  if (!words_.empty()) {
    if (const auto found = words_.find(word); found != words_.end()) {
      out.assign(1, {found->second, 0, static_cast<uint32_t>(word.size())});
      return;
    }
  }
  symbols_of(word, out);
  if (out.size() <= kShort)
    merge_short(out);
  else
    merge_long(out);
}

void Bpe::encode(std::string_view word, size_t begin, size_t lead, std::vector<TokenSpan>& out) const {
  const auto place = [&](size_t i) { return static_cast<uint32_t>(begin + (i > lead ? i - lead : 0)); };
  KnownWord* known = sealed_ != 0 ? known_words(sealed_).find(word) : nullptr;
  if (known != nullptr && known->is(word)) {
    uint32_t at = 0;
    for (size_t i = 0; i < known->count; at = known->ends[i++])
      out.push_back({known->ids[i], place(at), place(known->ends[i])});
    return;
  }
  thread_local std::vector<Symbol> symbols;
  tokens_of(word, symbols);
  for (const Symbol& s : symbols) out.push_back({s.id, place(s.begin), place(s.end)});
  if (known != nullptr) known->remember(word, symbols);
}

}  // namespace qlora
