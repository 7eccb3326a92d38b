// The one function that ONNX Runtime looks for, and one for people.
#include "cpu.h"
#include "nodes.h"

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

namespace catonnx {
namespace {

// ONNX Runtime keeps the pointer: the domain lives as long as the library.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const made = [] {
    OrtCustomOpDomain* domain = nullptr;
    check(api->CreateCustomOpDomain("catonnx", &domain));
    const auto add = [&](const std::vector<const OrtCustomOp*>& ops) {
      for (const OrtCustomOp* op : ops) check(api->CustomOpDomain_Add(domain, op));
    };
    add(transform_ops());
    add(quantized_ops());
    add(fused_ops());
#if defined(CATONNX_CUDA)
    add(cuda_ops());
#endif
    return domain;
  }();
  return made;
}

}  // namespace
}  // namespace catonnx

// Which instruction set kernels use that are made from now on.
EXPORTED const char* catonnx_instruction_set() { return catonnx::name(catonnx::isa()); }

EXPORTED OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* const found = base->GetApi(ORT_API_VERSION);
  if (found == nullptr) {  // the first version is part of every later one
    const std::string message = "catonnx: this library was built for version " + std::to_string(ORT_API_VERSION) +
                                " of the API of ONNX Runtime, and this is ONNX Runtime " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  catonnx::api = found;
  return catonnx::guarded([&] {
    const std::string wrong = catonnx::choose_isa();
    if (!wrong.empty()) catonnx::refuse("catonnx: ", wrong);
    catonnx::check(found->AddCustomOpDomain(options, catonnx::domain()));
  });
}
