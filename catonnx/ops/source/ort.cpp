#include "ort.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>

namespace catonnx {

const OrtApi* api = nullptr;

namespace {

constexpr double SMALLEST_SHARE = 1 << 13;  // of a thread in a job, in operations: some microseconds

struct Info {  // of a tensor; freed with this
  explicit Info(const OrtValue* value) { check(api->GetTensorTypeAndShape(value, &info)); }
  ~Info() { api->ReleaseTensorTypeAndShapeInfo(info); }
  Info(const Info&) = delete;
  Info& operator=(const Info&) = delete;
  OrtTensorTypeAndShapeInfo* info = nullptr;
};

// One job for the thread pool: no exception may pass through it.
struct Job {
  const std::function<void(int64_t, int64_t)>& work;
  int64_t total, part;
  std::atomic<bool> failed{false};

  static void run(void* user, size_t index) noexcept {
    Job& job = *static_cast<Job*>(user);
    const int64_t first = static_cast<int64_t>(index) * job.part;
    try {
      job.work(first, std::min(job.total, first + job.part));
    } catch (...) {
      job.failed = true;
    }
  }
};

bool succeeded(OrtStatus* status) {
  if (status == nullptr) return true;
  api->ReleaseStatus(status);
  return false;
}

}  // namespace

void check(OrtStatus* status) {
  if (status == nullptr) return;
  Refusal refusal{api->GetErrorMessage(status)};
  api->ReleaseStatus(status);
  throw refusal;
}

OrtStatus* guarded(const std::function<void()>& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Refusal& refusal) {
    return api->CreateStatus(ORT_INVALID_ARGUMENT, refusal.message.c_str());
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "catonnx: out of memory");
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

std::string written(const Shape& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i == 0 ? "" : ", ") << shape[i];
  text << ']';
  return text.str();
}

int64_t count(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

Tensor::Tensor(const OrtValue* value) : value(value) {
  const Info info(value);
  size_t rank = 0;
  check(api->GetDimensionsCount(info.info, &rank));
  shape.resize(rank);
  check(api->GetDimensions(info.info, shape.data(), rank));
  check(api->GetTensorMutableData(const_cast<OrtValue*>(value), const_cast<void**>(&data)));
}

int64_t Tensor::rows() const { return count(Shape(shape.begin(), shape.end() - 1)); }

bool Tensor::on_cpu() const {
  const OrtMemoryInfo* where = nullptr;
  OrtMemoryInfoDeviceType device = OrtMemoryInfoDeviceType_CPU;
  check(api->GetTensorMemoryInfo(value, &where));
  api->MemoryInfoGetDeviceType(where, &device);
  return device == OrtMemoryInfoDeviceType_CPU;
}

std::unique_ptr<Tensor> Creation::constant(size_t input) const {
  int known = 0;
  const OrtValue* value = nullptr;
  check(api->KernelInfoGetConstantInput_tensor(info_, input, &known, &value));
  return known != 0 && value != nullptr ? std::make_unique<Tensor>(value) : nullptr;
}

int64_t Creation::integer(const char* op, const char* name) const {
  int64_t value = 0;
  if (succeeded(api->KernelInfoGetAttribute_int64(info_, name, &value))) return value;
  refuse(op, ": the attribute ", name, " is missing, or not an integer");
}

float Creation::number(const char* op, const char* name, float otherwise) const {
  float value = 0;
  if (succeeded(api->KernelInfoGetAttribute_float(info_, name, &value))) return value;
  int64_t wrong = 0;
  if (succeeded(api->KernelInfoGetAttribute_int64(info_, name, &wrong))) {
    refuse(op, ": the attribute ", name, " is an integer, and must be a float");
  }
  return otherwise;
}

int64_t Inference::integer(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = -1;
  size_t size = 0;
  const bool found = succeeded(api->ShapeInferContext_GetAttribute(context_, name, &attribute)) &&
                     succeeded(api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &size));
  return found ? value : -1;
}

ONNXTensorElementDataType Inference::type(size_t input) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api->ShapeInferContext_GetInputTypeShape(context_, input, &info));
  check(api->GetTensorElementType(info, &type));
  return type;
}

void Inference::like_input(size_t index, ONNXTensorElementDataType type, int64_t last) const {
  OrtTensorTypeAndShapeInfo* input = nullptr;  // the context's own
  check(api->ShapeInferContext_GetInputTypeShape(context_, 0, &input));
  size_t rank = 0;
  check(api->GetDimensionsCount(input, &rank));
  if (rank == 0) return;  // this is how an unknown shape looks; no input may be a scalar
  Shape shape(rank);
  std::vector<const char*> names(rank);
  check(api->GetDimensions(input, shape.data(), rank));
  check(api->GetSymbolicDimensions(input, names.data(), rank));
  if (last != -1) {
    shape.back() = last;
    names.back() = "";
  }
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return;  // it would be written down as -1
  }
  OrtTensorTypeAndShapeInfo* made = nullptr;
  check(api->CreateTensorTypeAndShapeInfo(&made));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> output(
      made, api->ReleaseTensorTypeAndShapeInfo);
  check(api->SetTensorElementType(made, type));
  check(api->SetDimensions(made, shape.data(), rank));
  check(api->SetSymbolicDimensions(made, names.data(), rank));
  check(api->ShapeInferContext_SetOutputTypeShape(context_, index, made));
}

Tensor Run::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(api->KernelContext_GetInput(context_, index, &value));
  return Tensor(value);
}

void* Run::output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(api->KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  check(api->GetTensorMutableData(value, &data));
  return data;
}

void Run::parallel(int64_t total, double cost, int64_t step,
                   const std::function<void(int64_t, int64_t)>& work) const {
  static const double processors = std::thread::hardware_concurrency();
  if (total <= 0) return;
  const double shares = cost * static_cast<double>(total) / SMALLEST_SHARE;
  if (shares < 2 || total <= step) return work(0, total);
  // None for each thread there is; fewer where there is little to do.
  const size_t threads = shares < processors ? static_cast<size_t>(shares) : 0;
  // Of small parts as many at a time as make a quarter of a share.
  const double steps = std::max(1.0, SMALLEST_SHARE / 4 / (cost * static_cast<double>(step)));
  Job job{work, total, step * static_cast<int64_t>(std::min(steps, static_cast<double>(total)))};
  const size_t parts = static_cast<size_t>((total + job.part - 1) / job.part);
  check(api->KernelContext_ParallelFor(context_, Job::run, parts, threads, &job));
  if (job.failed) throw std::bad_alloc();  // nothing else is thrown while numbers are computed
}

void* Run::stream() const {
  void* stream = nullptr;
  check(api->KernelContext_GetGPUComputeStream(context_, &stream));
  return stream;
}

Scratch::Scratch(const Run& run, const Tensor& beside, int64_t bytes) {
  if (bytes == 0) return;
  const OrtMemoryInfo* where = nullptr;
  check(api->GetTensorMemoryInfo(beside.value, &where));
  check(api->KernelContext_GetAllocator(run.context(), where, &allocator_));
  OrtStatus* const status =
      api->KernelContext_GetScratchBuffer(run.context(), where, static_cast<size_t>(bytes), &data_);
  if (status != nullptr) api->ReleaseAllocator(allocator_);
  check(status);
}

Scratch::~Scratch() {
  if (allocator_ == nullptr) return;
  allocator_->Free(allocator_, data_);
  api->ReleaseAllocator(allocator_);
}

Floats::Floats(const float* data, int64_t) : data_(data) {}

Floats::Floats(const Half* data, int64_t count) : own_(new float[count]), data_(own_.get()) {
  transform_kernels(isa()).widen(data, count, own_.get());
}

Floats::Floats(const Bfloat16* data, int64_t count) : own_(new float[count]), data_(own_.get()) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(data[i].bits) << 16;
    std::memcpy(own_.get() + i, &bits, sizeof bits);
  }
}

}  // namespace catonnx
