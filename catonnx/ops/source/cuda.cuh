// What the CUDA kernels share: numbers in memory, a warp's maximum, the tensor cores, how kernels are launched.
//
// Tests compile the .cu files as plain C++ too, with a header that emulates what they use of CUDA: instructions that
// have no name in CUDA C++ are wrapped here, and nowhere else.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace catonnx {
namespace {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// --- instructions ---------------------------------------------------------------------------------------------------

#if defined(__CUDACC__)
// d += a b on the tensor cores, for a int8 [16, 32] and b int8 [32, 8]. Of lane l, with g = l / 4 and t = l % 4: a[0] and a[2]
// are channels 4 t and 16 + 4 t (and the next three) of row g, a[1] and a[3] of row g + 8; b[0] and b[1] are the same
// channels of column g; d is [g, 2 t], [g, 2 t + 1] and the same of row g + 8.
__device__ __forceinline__ void multiply_tile(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b in float32, for a of T [16, 16] and b of T [16, 8], two numbers to a word. Of the lane above, a[0] and a[2] are
// channels 2 t and 8 + 2 t (and the next one) of row g, a[1] and a[3] of row g + 8; b[0] and b[1] are the same channels of
// column g; d is as above.
template <class T>
__device__ __forceinline__ void multiply_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Begins to copy `bytes` (4, 8 or 16), of which the first `present` exist and the rest becomes zero.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int present) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16) {  // past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(present) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(present), "n"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's last commits are under way.
template <int pending>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Waits for all threads of the cluster; what they wrote to shared memory is there for all of them.
__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900  // before, there are no clusters
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// What lies at the same place of another block's shared memory; `rank` is its number in the cluster.
__device__ __forceinline__ uint32_t read_of_rank(const uint32_t* shared, int rank) {
  uint32_t value = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("{\n\t.reg .u32 place;\n\tmapa.shared::cluster.u32 place, %1, %2;\n\tld.shared::cluster.u32 %0, [place];\n\t}"
               : "=r"(value)
               : "r"(own), "r"(rank)
               : "memory");
#endif
  return value;
}

// This block's shared memory, as many bytes as the launch asked for.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<unsigned char*>(memory);
}
#endif

// --- numbers in memory ----------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

// Eight numbers at a multiple of 16 bytes.
__device__ __forceinline__ void load(const float* from, float (&x)[8]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

template <class T>
__device__ __forceinline__ void load(const T* from, float (&x)[8]) {
  static_assert(sizeof(T) == 2);
  union {
    uint4 words;
    T numbers[8];
  } value;
  value.words = *reinterpret_cast<const uint4*>(from);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = widen(value.numbers[i]);
}

__device__ __forceinline__ void store(const float (&x)[8], float* to) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

template <class T>
__device__ __forceinline__ void store(const float (&x)[8], T* to) {
  static_assert(sizeof(T) == 2);
  union {
    uint4 words;
    T numbers[8];
  } value;
#pragma unroll
  for (int i = 0; i < 8; ++i) narrow(x[i], value.numbers[i]);
  *reinterpret_cast<uint4*>(to) = value.words;
}

// Two numbers at a multiple of their size.
__device__ __forceinline__ void store_pair(float one, float other, float* to) {
  *reinterpret_cast<float2*>(to) = make_float2(one, other);
}

template <class T>
__device__ __forceinline__ void store_pair(float one, float other, T* to) {
  union {
    uint32_t word;
    T numbers[2];
  } value;
  narrow(one, value.numbers[0]);
  narrow(other, value.numbers[1]);
  *reinterpret_cast<uint32_t*>(to) = value.word;
}

// --- launches -------------------------------------------------------------------------------------------------------

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const char* error_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// An attribute of the device in use; 0 if it cannot be told.
inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

constexpr int SHARED_BYTES = 48 << 10;  // that every kernel may have unasked

// Runs kernel(arguments...) in the stream, blocks in clusters of `cluster` along the first axis. Returns what went wrong; null
// if nothing.
template <class... Arguments>
const char* launch_clusters(int cluster, void (*kernel)(Arguments...), dim3 blocks, int threads, size_t shared,
                            cudaStream_t stream, Arguments... arguments) {
  if (shared > SHARED_BYTES) {
    // It is the kernel's, not of this launch: all there is, so that no launch takes from another thread's.
    const cudaError_t refused =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    if (refused != cudaSuccess) return error_of(refused);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute clusters = {};
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim.x = static_cast<unsigned>(cluster);
  clusters.val.clusterDim.y = clusters.val.clusterDim.z = 1;
  config.attrs = &clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return error_of(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Whether the device in use can run a cluster of so many blocks, each with all the shared memory that a block may have. Parts
// of a GPU (MIG, MPS) may hold fewer blocks than the GPU itself.
template <class... Arguments>
bool holds_cluster(int cluster, void (*kernel)(Arguments...), int threads) {
  const int shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  cudaLaunchAttribute clusters = {};
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim.x = static_cast<unsigned>(cluster);
  clusters.val.clusterDim.y = clusters.val.clusterDim.z = 1;
  config.attrs = &clusters;
  config.numAttrs = 1;
  int count = 0;
  const bool told = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         shared) == cudaSuccess &&
                    cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess;
  if (!told) cudaGetLastError();  // which is no news to whoever asks next
  return told && count > 0;
}

template <class... Arguments>
const char* launch(void (*kernel)(Arguments...), dim3 blocks, int threads, size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
  return launch_clusters(1, kernel, blocks, threads, shared, stream, arguments...);
}

}  // namespace
}  // namespace catonnx
