// (x + shift)·scale per channel, Glow's activation normalization, and its inverse.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// What a channel's elements meet, in both directions: (x + before)·scale + after. One of the two
// shifts is 0.
template <class S>
struct ActNormChannel {
  S before, scale, after;

  GMFAST_HD ActNormChannel(S shift, S log_scale, bool inverse)
      : before(inverse ? S(0) : shift),
        scale(exp(inverse ? -log_scale : log_scale)),
        after(inverse ? -shift : S(0)) {}
};

template <class V>
GMFAST_HD V actnorm(V x, V before, V scale, V after) {
  return (x + before) * scale + after;
}

// The gradient by x, and what a channel's gradients are made of: by_shift summed, and by_scale.
template <class V>
GMFAST_HD void actnorm_backward(V grad_y, V x, V before, V scale, V& grad_x, V& by_shift,
                                V& by_scale) {
  grad_x = grad_y * scale;
  by_shift = grad_y;
  by_scale = grad_y * (x + before);
}

// A channel's gradients from the sums of the two, and that of log_det times the pixels.
GMFAST_HD void actnorm_channel_gradients(double by_shift, double by_scale, double by_log_det,
                                         double scale, bool inverse, double& grad_shift,
                                         double& grad_log_scale) {
  grad_shift = inverse ? -by_shift : by_shift * scale;
  grad_log_scale = by_scale * scale + by_log_det;
  if (inverse) grad_log_scale = -grad_log_scale;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
