#pragma once
#include <cstddef>
#include <string>

namespace qlora::cuda {

// What a program finds of CUDA when it starts. Versions as the runtime numbers them: 1000 major + 10 minor.
struct Found {
  bool built = true;
  int runtime = 0, driver = 0;  // driver: the newest CUDA that it serves; 0: none is loaded
  std::string failure;          // the driver's own words, where it is loaded and does not start
  int devices = 0;
  // Of the device that was asked for, where there is one of that index: its name and compute capability.
  std::string name;
  int major = 0, minor = 0;
  size_t shared_bytes = 0;  // of shared memory, that a block gets where it asks for the most
};

// Of the CUDA that is built into the program, numbered so; 0: none. Asks nothing of the driver.
int runtime_version();
std::string version_text(int version);  // "13.0"; "" of 0

// By the body that is linked (memory/cuda/host.h).
Found find(int device);

// Why nothing runs on this device, and what to do, in one line; empty when all is there.
std::string refusal(const Found& found, int device);

// Before anything else is asked of a device: Category::usage, with that line, when nothing can run on it.
void require_device(int device);

}  // namespace qlora::cuda
