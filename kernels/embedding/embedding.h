#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"
#include "quant/weight_view.h"

namespace qlora {

// y[t] = table[ids[t]] * scale, each row decoded to fp32, then rounded to y's
// dtype. ids in [0, table.rows): checked, Category::internal. y [T, table.cols] fp32 or bf16.
void embedding(Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale, const Mat& y);

// The same bits on a CUDA device whose host keeps the table: the host decodes the rows into pinned memory, as
// many as y has, and waits until they are copied. y's rows lie end to end.
void embedding_of_host(Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale,
                       const Mat& y);

}  // namespace qlora
