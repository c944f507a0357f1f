#include "../args/discretized_logistic_mixture.h"

#include <cmath>
#include <tuple>

#include "backend.h"
#include "codes.h"
#include "noise.h"

namespace gmfast {
namespace {

// The reduced loss, then its derivatives by x and by params, as if its own gradient were 1; each
// empty where not wanted, and in float32 for a float16 tensor, whose range could not hold it.
std::tuple<Tensor, Tensor, Tensor> nll(const Tensor& x, const Tensor& params, int64_t num_classes,
                                       double log_scale_min, bool pixelcnnpp,
                                       int64_t reduction_code, bool want_grad_x,
                                       bool want_grad_params) {
  const int64_t dim = x.dim();
  STD_TORCH_CHECK(dim >= 2 && params.dim() == dim, "x and params: expected (B, C, *S), (B, P, *S)");
  const int64_t channels = x.size(1), per_component = channels == 1 ? 3 : 10;
  STD_TORCH_CHECK(channels == 1 || channels == 3, "x: expected 1 or 3 channels");
  STD_TORCH_CHECK(params.size(1) > 0 && params.size(1) % per_component == 0,
                  "params: expected 3*K channels for 1-channel x, 10*K for 3-channel x");
  for (int64_t d = 0; d < dim; ++d) {
    STD_TORCH_CHECK(d == 1 || x.size(d) == params.size(d), "x and params: sizes differ");
  }

  const auto reduction = Reduction(reduction_code);
  const Tensor x_in = with_one_pixel_stride(x), params_in = with_one_pixel_stride(params);
  LogisticMixtureNll args{};
  args.batch = x.size(0);
  args.pixels = pixels_of(x);
  args.channels = int(channels);
  args.mixtures = params.size(1) / per_component;
  args.num_classes = int(num_classes);
  args.log_scale_min = log_scale_min;
  args.pixelcnnpp = pixelcnnpp;
  args.x = image_of(x_in);
  args.params = image_of(params_in);

  Sizes pixels = sizes_of(x);
  pixels.erase(pixels.begin() + 1);
  const ScalarType dtype = scalar_type(args.compute());
  Tensor loss = empty_contiguous(x, pixels, dtype), result = loss;
  args.loss = loss.data_ptr();
  args.total_scale = reduction == Reduction::mean ? 1.0 / double(args.batch)
                     : reduction == Reduction::bits_per_dim
                         ? 1.0 / (double(x.numel()) * std::log(2.0))
                         : 1.0;
  args.gradient_scale = args.total_scale;
  if (reduction != Reduction::none) {
    args.total_over_batch = reduction != Reduction::batch;
    result =
        empty_contiguous(x, reduction == Reduction::batch ? Sizes{args.batch} : Sizes{}, dtype);
    args.total = result.data_ptr();
  }
  const auto gradient = [](const Tensor& tensor, bool wanted, Image& image) {
    const ScalarType type = tensor.scalar_type();
    Tensor grad = empty_as(tensor, wanted ? sizes_of(tensor) : Sizes{0},
                           type == ScalarType::Half ? ScalarType::Float : type);
    if (wanted) image = image_of(grad);
    return grad;
  };
  Tensor grad_x = gradient(x, want_grad_x, args.grad_x);
  Tensor grad_params = gradient(params, want_grad_params, args.grad_params);
  GMFAST_RUN(discretized_logistic_mixture_nll, x, args);
  return {result, grad_x, grad_params};
}

Tensor sample(const Tensor& params, const Tensor& seed, int64_t channels, int64_t num_classes,
              double log_scale_min, double temperature, bool quantize, int64_t first) {
  const int64_t dim = params.dim(), per_component = channels == 1 ? 3 : 10;
  STD_TORCH_CHECK(channels == 1 || channels == 3, "channels: expected 1 or 3");
  STD_TORCH_CHECK(dim >= 2 && params.size(1) > 0 && params.size(1) % per_component == 0,
                  "params: expected (B, 3*K, *S) for one channel, (B, 10*K, *S) for three");

  const Tensor params_in = with_one_pixel_stride(params);
  LogisticMixtureSample args{};
  args.batch = params.size(0);
  args.pixels = pixels_of(params);
  args.channels = int(channels);
  args.mixtures = params.size(1) / per_component;
  args.num_classes = int(num_classes);
  args.log_scale_min = log_scale_min;
  args.temperature = temperature;
  args.quantize = quantize;
  args.params = image_of(params_in);
  args.seeds = seeds_of(seed, params, args.batch, first);

  Sizes sizes = sizes_of(params);
  sizes[1] = channels;
  Tensor x = empty_contiguous(params, sizes, scalar_type(args.compute()));
  args.x = x.data_ptr();
  GMFAST_RUN(discretized_logistic_mixture_sample, params, args);
  return x;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "discretized_logistic_mixture_nll(Tensor x, Tensor params, int num_classes, "
      "float log_scale_min, bool pixelcnnpp, int reduction, bool want_grad_x, "
      "bool want_grad_params) -> (Tensor, Tensor, Tensor)");
  m.def(
      "discretized_logistic_mixture_sample(Tensor params, Tensor seed, int channels, "
      "int num_classes, float log_scale_min, float temperature, bool quantize, "
      "int first=0) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("discretized_logistic_mixture_nll", TORCH_BOX(&gmfast::nll));
  m.impl("discretized_logistic_mixture_sample", TORCH_BOX(&gmfast::sample));
}
