// The operators of the domain `catonnx` as ONNX Runtime sees them.
#pragma once

#include <climits>
#include <cstdlib>
#include <iterator>

#include "ort.h"

namespace catonnx {

// Every operator, once for each type of its numbers.
std::vector<const OrtCustomOp*> transform_ops();
std::vector<const OrtCustomOp*> quantized_ops();
std::vector<const OrtCustomOp*> fused_ops();
#if defined(CATONNX_CUDA)
std::vector<const OrtCustomOp*> cuda_ops();
#endif

// One operator of one type. `Kernel` has the constants name, inputs, outputs (their types) and in_place (whether the first
// output may take the place of the first input), static infer(const Inference&), is made of a Creation, and has
// run(const Run&).
template <class Kernel>
struct Op : OrtCustomOp {
  Op() : OrtCustomOp{} {
    version = ORT_API_VERSION;
    GetName = [](const OrtCustomOp*) { return Kernel::name; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::inputs); };
    GetInputType = [](const OrtCustomOp*, size_t index) { return Kernel::inputs[index]; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::outputs); };
    GetOutputType = [](const OrtCustomOp*, size_t index) { return Kernel::outputs[index]; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded([&] { *kernel = new Kernel(Creation(info)); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] { static_cast<Kernel*>(kernel)->run(Run(context)); });
    };
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
      return guarded([&] { Kernel::infer(Inference(context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    if (Kernel::in_place) {
      GetMayInplace = [](int** input, int** output) -> size_t {
        *input = static_cast<int*>(std::calloc(1, sizeof(int)));
        *output = static_cast<int*>(std::calloc(1, sizeof(int)));
        return *input != nullptr && *output != nullptr ? 1 : 0;
      };
      ReleaseMayInplace = [](int* input, int* output) {
        std::free(input);
        std::free(output);
      };
    }
  }
};

}  // namespace catonnx
