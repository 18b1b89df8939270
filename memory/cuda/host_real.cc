#include <cuda_runtime.h>

#include <cstdlib>
#include <source_location>

#include "memory/cuda/current.h"
#include "memory/cuda/host.h"
#include "memory/cuda/stamp.h"
#include "memory/cuda/start.h"

namespace qlora::cuda {
namespace {

void verify(cudaError_t error, const char* call,
            std::source_location place = std::source_location::current()) {
  if (error == cudaSuccess) [[likely]]
    return;
  const bool memory = error == cudaErrorMemoryAllocation;
  fail(memory ? Category::memory : Category::io, place.file_name(), ":", place.line(), ": ", call, ": ",
       cudaGetErrorString(error), " (", cudaGetErrorName(error), "); ",
       memory ? "a smaller batch or sequence needs less" : "check the card and its driver (nvidia-smi)");
}

// All kernels are loaded with the context, so that what it takes is known before a run is planned and no step
// waits for one. Before main(), while there is one thread; who set it otherwise has his way.
[[maybe_unused]] const int eager = setenv("CUDA_MODULE_LOADING", "EAGER", 0);

cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }
cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }

cudaMemLocation location(bool on_device, int device) {
  return {on_device ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost, on_device ? device : 0};
}

}  // namespace

// Never set back: to make the first card current would begin a context there, which takes its memory.
void make_current(int device) {
  int current = 0;
  verify(cudaGetDevice(&current), "cudaGetDevice");
  if (current != device) verify(cudaSetDevice(device), "cudaSetDevice");
}

int runtime_version() { return CUDART_VERSION; }

Found find(int device) {
  Found f;
  verify(cudaRuntimeGetVersion(&f.runtime), "cudaRuntimeGetVersion");
  verify(cudaDriverGetVersion(&f.driver), "cudaDriverGetVersion");
  const cudaError_t error = f.driver == 0 ? cudaSuccess : cudaGetDeviceCount(&f.devices);
  if (error != cudaSuccess && error != cudaErrorNoDevice) f.failure = cudaGetErrorString(error);
  if (error != cudaSuccess) f.devices = 0;
  if (device < 0 || device >= f.devices) return f;
  cudaDeviceProp p = {};
  verify(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  f.name = p.name;
  f.major = p.major;
  f.minor = p.minor;
  f.shared_bytes = p.sharedMemPerBlockOptin;
  return f;
}

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return 0;
  verify(error, "cudaGetDeviceCount");
  return count;
}

DeviceInfo device_info(int device) {
  make_current(device);
  cudaDeviceProp p = {};
  verify(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  DeviceInfo info;
  info.name = p.name;
  info.major = p.major;
  info.minor = p.minor;
  info.concurrent_managed_access = p.concurrentManagedAccess != 0;
  verify(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "cudaMemGetInfo");
  return info;
}

Memory Memory::allocate(MemoryKind kind, int device, size_t bytes) {
  make_current(device);
  void* p = nullptr;
  const cudaError_t error = kind == MemoryKind::device   ? cudaMalloc(&p, bytes)
                            : kind == MemoryKind::pinned ? cudaHostAlloc(&p, bytes, cudaHostAllocPortable)
                                                         : cudaMallocManaged(&p, bytes);
  Memory m;
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // refused, and that is all: later calls must not see it
    return m;
  }
  verify(error, "allocation");
  m.kind_ = kind;
  m.device_ = device;
  m.data_ = static_cast<std::byte*>(p);
  m.bytes_ = bytes;
  return m;
}

Memory::~Memory() {
  // A failure here is the sticky one of an earlier call, which has been reported.
  if (data_ != nullptr) kind_ == MemoryKind::pinned ? cudaFreeHost(data_) : cudaFree(data_);
}

Event::Event(int device) {
  make_current(device);
  cudaEvent_t e = nullptr;
  verify(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  handle_ = e;
}
Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(event_of(handle_));
}
void Event::record(Stream& s) {
  verify(cudaEventRecord(event_of(handle_), stream_of(s.handle())), "cudaEventRecord");
}
bool Event::done() const {
  const cudaError_t error = cudaEventQuery(event_of(handle_));
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // no error, and the next launch must not be told of one
    return false;
  }
  verify(error, "cudaEventQuery");
  return true;
}
void Event::synchronize() const { verify(cudaEventSynchronize(event_of(handle_)), "cudaEventSynchronize"); }

Stamp::Stamp(int device) {
  make_current(device);
  cudaEvent_t e = nullptr;
  verify(cudaEventCreate(&e), "cudaEventCreate");
  handle_ = e;
}
Stamp::~Stamp() {
  if (handle_ != nullptr) cudaEventDestroy(event_of(handle_));
}
void Stamp::record(Stream& s) {
  verify(cudaEventRecord(event_of(handle_), stream_of(s.handle())), "cudaEventRecord");
}
void Stamp::synchronize() const { verify(cudaEventSynchronize(event_of(handle_)), "cudaEventSynchronize"); }
double Stamp::seconds_since(const Stamp& earlier) const {
  float milliseconds = 0;
  verify(cudaEventElapsedTime(&milliseconds, event_of(earlier.handle_), event_of(handle_)),
         "cudaEventElapsedTime");
  return 1e-3 * static_cast<double>(milliseconds);
}

Stream::Stream(int device) : device_(device) {
  make_current(device);
  cudaStream_t s = nullptr;
  verify(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  handle_ = s;
}
Stream::~Stream() {
  cudaStreamSynchronize(stream_of(handle_));
  cudaStreamDestroy(stream_of(handle_));
}
void Stream::wait(const Event& e) {
  verify(cudaStreamWaitEvent(stream_of(handle_), event_of(e.handle_), 0), "cudaStreamWaitEvent");
}
void Stream::copy(void* to, const void* from, size_t bytes) {
  verify(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(handle_)), "cudaMemcpyAsync");
}
void Stream::fill(void* to, unsigned char byte, size_t bytes) {
  verify(cudaMemsetAsync(to, byte, bytes, stream_of(handle_)), "cudaMemsetAsync");
}
void Stream::prefetch(void* managed, size_t bytes, bool to_device) {
  verify(cudaMemPrefetchAsync(managed, bytes, location(to_device, device_), 0, stream_of(handle_)),
         "cudaMemPrefetchAsync");
}
void Stream::prefer_host(void* managed, size_t bytes) {
  verify(cudaMemAdvise(managed, bytes, cudaMemAdviseSetPreferredLocation, location(false, device_)),
         "cudaMemAdvise");
  verify(cudaMemAdvise(managed, bytes, cudaMemAdviseSetAccessedBy, location(true, device_)), "cudaMemAdvise");
}
void Stream::call(void (*f)(void*), void* argument) {
  verify(cudaLaunchHostFunc(stream_of(handle_), f, argument), "cudaLaunchHostFunc");
}
void Stream::synchronize() { verify(cudaStreamSynchronize(stream_of(handle_)), "cudaStreamSynchronize"); }

}  // namespace qlora::cuda
