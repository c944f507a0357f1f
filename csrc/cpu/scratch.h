// Memory for what a kernel needs besides its operands.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Cache-aligned memory, uninitialised; of nothing, none.
template <class S>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(count ? static_cast<S*>(std::aligned_alloc(64, (count * sizeof(S) + 127) / 64 * 64))
                    : nullptr) {
    if (count && !data_) throw std::bad_alloc();
  }
  S* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(S* data) const { std::free(data); }
  };
  std::unique_ptr<S, Free> data_;
};

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
