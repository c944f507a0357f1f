// Threads for kernels: torch's own pool, so that there is never a second one. ops/backend.cpp
// defines it.
#pragma once

#include <cstdint>

namespace gmfast {

// Calls body(begin, end, context) on disjoint ranges that cover [0, count); none is split below
// `grain`. The number of ranges depends on the number of threads; a kernel's result must not.
void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context);

template <class Body>
inline void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

}  // namespace gmfast
