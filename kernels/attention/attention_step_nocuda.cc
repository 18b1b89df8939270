#include "kernels/attention/attention_step_args.h"
#include "kernels/cuda/absent.h"

namespace qlora::attention {

void step_cuda(Exec&, const StepArgs&) { cuda::absent(); }

}  // namespace qlora::attention
