#pragma once

namespace qlora {

// Asks for what a loop over rows that lie one behind the other comes to next: not every CPU looks that far
// ahead by itself, and a loop that computes does not get there in time. Reads nothing, so that the end of a
// matrix is no bound.
inline void fetch_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 4096); }

}  // namespace qlora
