#include "memory.h"

#include <cstdlib>
#include <new>

namespace catonnx {
namespace {

constexpr int64_t PAGE = 4096, LITTLE = int64_t{1} << 20;  // of a thread: a server has many of them

int64_t whole_pages(int64_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

void* allocate_pages(int64_t bytes) {
  void* const memory = std::aligned_alloc(64, static_cast<size_t>(whole_pages(bytes)));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

thread_local Kept lent;

}  // namespace

void Kept::Free::operator()(void* memory) const { std::free(memory); }

uint8_t* Kept::of(int64_t bytes) {
  if (bytes > size_) {
    size_ = 0;
    memory_.reset();
    memory_.reset(allocate_pages(bytes));
    size_ = whole_pages(bytes);
  }
  return static_cast<uint8_t*>(memory_.get());
}

Lent::Lent(int64_t bytes) {
  if (bytes > LITTLE) own_ = allocate_pages(bytes);
  data_ = own_ != nullptr ? own_ : lent.of(bytes);
}

Lent::~Lent() { std::free(own_); }

}  // namespace catonnx
