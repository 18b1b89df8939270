#pragma once
#include <cstddef>

namespace qlora {

// Resident bytes of this process now (/proc/self/status): anonymous pages, and pages of mapped files
// (libraries, weights).
struct ResidentSet {
  size_t anonymous = 0, file = 0;
};
ResidentSet resident_set();

// The largest resident set so far, in bytes (VmHWM; 0 where there is no /proc).
size_t peak_resident_bytes();

// Bytes of the program and its libraries that are mapped and not resident: what running more of their code
// may still make resident. All of them where the system does not say (/proc/self/pagemap).
size_t code_to_come();

// Gives memory that was freed back to the system: after much has been read and parsed.
void return_freed_memory();

// What a process may still take: free memory now, never above what the cgroup's limit leaves (v2 and v1).
size_t available_bytes();

}  // namespace qlora
