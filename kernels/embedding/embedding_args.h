#pragma once
#include "kernels/embedding/embedding.h"

// What embedding's dispatch hands to its bodies.
namespace qlora {

struct EmbeddingArgs {
  const int32_t* ids;
  WeightView table;
  float scale;
  Mat y;
};

void embedding_cuda(Exec& e, const EmbeddingArgs& a);

}  // namespace qlora
