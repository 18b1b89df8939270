#pragma once

namespace qlora::cuda {

// Launches, and what libraries do, go to the calling thread's current device, whatever stream they are given:
// makes it this one. Calls of host.h that name a device do so, too.
void make_current(int device);

}  // namespace qlora::cuda
