#include "kernels/cuda/absent.h"
#include "kernels/embedding/embedding_args.h"

namespace qlora {

void embedding_cuda(Exec&, const EmbeddingArgs&) { cuda::absent(); }

}  // namespace qlora
