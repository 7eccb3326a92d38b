// As much of CUDA as our kernels use, on the CPU: put in front of the toolkit's headers it lets the .cu files compile as plain
// C++. The threads of a block are fibers that run one at a time, each until it waits for others, in an order that
// `catonnx_emulation` chooses: what a missing barrier leaves undefined comes out differently in different orders. Shared
// memory has exactly the bytes that were asked for and begins as garbage. Copies into it happen as late as they may, or
// at once. What would hang or be undefined on a GPU ends the launch with an error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// --- types ----------------------------------------------------------------------------------------------------------

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure, cudaErrorStreamCaptureUnsupported };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// --- the machine, see emulation.cpp ---------------------------------------------------------------------------------

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

inline bool capturing = false;

[[noreturn]] void fail(const char* what);  // ends the launch
unsigned char* shared_memory();
void block_barrier();
void cluster_barrier();
const void* of_rank(const void* shared, int rank);  // the same place in the shared memory of another block of the cluster
// Waits for all lanes of the warp to come to the same `kind`; the last one runs finish(what each of them brought).
void collective(const char* kind, void* brought, const std::function<void(void* const*)>& finish);
void copy(void* to, const void* from, int bytes, int present);
void commit_copies();
void await_copies(int pending);
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

}  // namespace emulated

// --- the runtime's functions ----------------------------------------------------------------------------------------

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute which, int value);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device);
struct cudaLaunchConfig_t;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// What allocates or waits is not here at all, but for this, which a stream that is being captured would not survive.
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return emulated::capturing ? cudaErrorStreamCaptureUnsupported : (std::memcpy(to, from, bytes), cudaSuccess);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel*, const cudaLaunchConfig_t* config) {
  int processors = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0);
  *count = processors / static_cast<int>(config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  return emulated::launch(*config, [=] { kernel(arguments...); });
}

// --- a thread's functions -------------------------------------------------------------------------------------------

using std::max;
using std::min;

template <class To, class From>
To emulated_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }

template <class T>
T __ldg(const T* from) {
  return *from;
}

// Sum of four products of signed bytes.
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}

// Byte i of the result is byte (selector >> 4 i) % 8 of x (0 to 3) and y (4 to 7).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = x | static_cast<uint64_t>(y) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = std::max(before, value);
  return before;
}

inline void __syncthreads() { emulated::block_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  if (lanes != 0xffffffffu) emulated::fail("a shuffle of a part of a warp");
  std::tuple<T, int, T> brought{value, mask, value};
  emulated::collective("shfl.bfly", &brought, [](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& own = *static_cast<std::tuple<T, int, T>*>(all[lane]);
      std::get<2>(own) = std::get<0>(*static_cast<std::tuple<T, int, T>*>(all[lane ^ std::get<1>(own)]));
    }
  });
  return std::get<2>(brought);
}

inline unsigned __reduce_max_sync(unsigned lanes, unsigned value) {
  if (lanes != 0xffffffffu) emulated::fail("a maximum of a part of a warp");
  emulated::collective("redux.max", &value, [](void* const* all) {
    unsigned most = 0;
    for (int lane = 0; lane < 32; ++lane) most = std::max(most, *static_cast<unsigned*>(all[lane]));
    for (int lane = 0; lane < 32; ++lane) *static_cast<unsigned*>(all[lane]) = most;
  });
  return value;
}

// What cuda.cuh wraps. The layout of fragments is that of the PTX documentation, "Matrix Fragments for mma.m16n8k32".
namespace catonnx {

inline void multiply_tile(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Brought {
    int* d;
    const uint32_t *a, *b;
  } brought{d, a, b};
  emulated::collective("mma.m16n8k32", &brought, [](void* const* all) {
    int8_t left[16][32], right[32][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Brought*>(all[lane]);
      const int group = lane >> 2, thread = lane % 4;
      for (int i = 0; i < 16; ++i) {
        const bool upper = i < 4 || (8 <= i && i < 12);
        const int row = upper ? group : group + 8, column = thread * 4 + (i & 3) + (i < 8 ? 0 : 16);
        left[row][column] = static_cast<int8_t>(own.a[i / 4] >> 8 * (i % 4));
      }
      for (int i = 0; i < 8; ++i) {
        right[thread * 4 + (i & 3) + (i < 4 ? 0 : 16)][group] = static_cast<int8_t>(own.b[i / 4] >> 8 * (i % 4));
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Brought*>(all[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
        int64_t sum = own.d[i];
        for (int k = 0; k < 32; ++k) sum += left[row][k] * right[k][column];
        if (sum != static_cast<int32_t>(sum)) emulated::fail("an int32 sum overflows");
        own.d[i] = static_cast<int>(sum);
      }
    }
  });
}

// "Matrix Fragments for mma.m16n8k16 with floating point type".
template <class T>
void multiply_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Brought {
    float* d;
    const uint32_t *a, *b;
  } brought{d, a, b};
  emulated::collective("mma.m16n8k16", &brought, [](void* const* all) {
    const auto number = [](uint32_t word, int i) {
      return static_cast<double>(emulated_number(emulated_bits<T>(static_cast<uint16_t>(word >> 16 * (i % 2)))));
    };
    double left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Brought*>(all[lane]);
      const int group = lane >> 2, thread = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const bool upper = i < 2 || (4 <= i && i < 6);
        left[upper ? group : group + 8][thread * 2 + (i & 1) + (i < 4 ? 0 : 8)] = number(own.a[i / 2], i);
      }
      for (int i = 0; i < 4; ++i) right[thread * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = number(own.b[i / 2], i);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Brought*>(all[lane]);
      for (int i = 0; i < 4; ++i) {
        double sum = own.d[i];
        for (int k = 0; k < 16; ++k) sum += left[lane / 4 + (i < 2 ? 0 : 8)][k] * right[k][lane % 4 * 2 + (i & 1)];
        own.d[i] = static_cast<float>(sum);
      }
    }
  });
}

inline void cluster_barrier() { emulated::cluster_barrier(); }
inline uint32_t read_of_rank(const uint32_t* shared, int rank) {
  return *static_cast<const uint32_t*>(emulated::of_rank(shared, rank));
}

template <int bytes>
void copy_async(void* shared, const void* global, int present) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulated::copy(shared, global, bytes, present);
}
inline void commit_copies() { emulated::commit_copies(); }
template <int pending>
void await_copies() {
  emulated::await_copies(pending);
}
inline unsigned char* shared_memory() { return emulated::shared_memory(); }

}  // namespace catonnx
