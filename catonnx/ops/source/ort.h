// A thin layer over ONNX Runtime's C API: errors, tensors, constants, attributes, the thread pool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "onnxruntime/onnxruntime_c_api.h"
#include "transform.h"

namespace catonnx {

// What this library was built against, once it is registered for the first time.
extern const OrtApi* api;

// Says why something is refused; becomes an OrtStatus before it leaves the library.
struct Refusal {
  std::string message;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refusal{text.str()};
}

// Throws what `status` says, if it says something.
void check(OrtStatus* status);

// Runs `work`, and returns what it throws.
OrtStatus* guarded(const std::function<void()>& work) noexcept;

using Shape = std::vector<int64_t>;

std::string written(const Shape& shape);  // [2, 3]
int64_t count(const Shape& shape);

// A tensor of ONNX Runtime's, to read.
struct Tensor {
  explicit Tensor(const OrtValue* value);

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }

  int64_t rows() const;  // of the last axis: the product of all others
  bool on_cpu() const;   // whether `data` can be read here

  Shape shape;
  const void* data = nullptr;
  const OrtValue* value;
};

// What a kernel may ask when it is created.
class Creation {
 public:
  explicit Creation(const OrtKernelInfo* info) : info_(info) {}

  std::unique_ptr<Tensor> constant(size_t input) const;  // null if it is not known yet
  int64_t integer(const char* op, const char* name) const;
  float number(const char* op, const char* name, float otherwise) const;

 private:
  const OrtKernelInfo* info_;
};

// What an operator may ask and tell before any kernel exists.
class Inference {
 public:
  explicit Inference(OrtShapeInferContext* context) : context_(context) {}

  int64_t integer(const char* name) const;  // an attribute; -1 if there is none

  // The type of an input. ONNX Runtime asks one operator for all of the same name: its own type may be another.
  ONNXTensorElementDataType type(size_t input) const;

  // Output `index` has the shape of input 0, with `last` as its last axis unless that is -1.
  void like_input(size_t index, ONNXTensorElementDataType type, int64_t last) const;

 private:
  OrtShapeInferContext* context_;
};

// What a kernel may ask when it runs.
class Run {
 public:
  explicit Run(OrtKernelContext* context) : context_(context) {}

  Tensor input(size_t index) const;
  void* output(size_t index, const Shape& shape) const;

  // work(first, last) for ranges that together are [0, total), in ONNX Runtime's threads; in this one if it all is small.
  // `cost` is that of one, in operations on a few numbers; ranges begin at multiples of `step`.
  void parallel(int64_t total, double cost, int64_t step, const std::function<void(int64_t, int64_t)>& work) const;

  void* stream() const;  // of the GPU, where this runs

  OrtKernelContext* context() const { return context_; }

 private:
  OrtKernelContext* context_;
};

// Memory beside a tensor's, on the same device. It is given back at the end, when work in the stream may still use it: who
// gets it next works in that stream too, behind it.
class Scratch {
 public:
  Scratch(const Run& run, const Tensor& beside, int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

// The numbers of a tensor, as floats: in place if they are.
class Floats {
 public:
  Floats(const float* data, int64_t count);
  Floats(const Half* data, int64_t count);
  Floats(const Bfloat16* data, int64_t count);
  Floats(Floats&&) = default;

  const float* data() const { return data_; }

 private:
  std::unique_ptr<float[]> own_;
  const float* data_;
};

inline constexpr ONNXTensorElementDataType type_of(const float*) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
inline constexpr ONNXTensorElementDataType type_of(const Half*) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16; }
inline constexpr ONNXTensorElementDataType type_of(const Bfloat16*) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16; }
template <class T>
constexpr ONNXTensorElementDataType type = type_of(static_cast<const T*>(nullptr));

}  // namespace catonnx
