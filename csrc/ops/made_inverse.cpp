#include "../args/made_inverse.h"

#include <optional>

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

// Checks the network and keeps its matrices alive; the pointers are into them.
class Network {
 public:
  Network(const Tensor& like, int64_t inputs, int64_t outputs, const std::vector<Tensor>& weights,
          const Optional& direct) {
    layers.dtype = dtype_of(like);
    STD_TORCH_CHECK(layers.dtype == DType::float32 || layers.dtype == DType::float64,
                    "expected float32 or float64");
    STD_TORCH_CHECK(like.dim() == 2 && inputs > 0 && outputs > 0, "expected (B, D)");
    STD_TORCH_CHECK(!weights.empty() && weights.size() <= 17, "weights: expected 1 to 17 matrices");
    layers.batch = like.size(0);
    layers.steps = like.size(1);
    layers.inputs = inputs;
    layers.outputs = outputs;
    layers.layers = int64_t(weights.size()) - 1;
    int64_t columns = layers.steps * inputs;
    for (int64_t i = 0; i <= layers.layers; ++i) {
      STD_TORCH_CHECK(weights[i].dim() == 2, "weights: expected matrices");
      const int64_t rows = i < layers.layers ? weights[i].size(0) : layers.steps * outputs;
      check_like("weights", weights[i], like, {rows, columns});
      layers.weights[i] = keep(weights[i]);
      if (i < layers.layers) units += layers.units[i] = rows;
      columns = rows;
    }
    if (direct) {
      check_like("direct", *direct, like, {layers.steps * outputs, layers.steps * inputs});
      layers.direct = keep(*direct);
    }
  }

  const void* keep(const Tensor& tensor) {
    kept_.push_back(torch::stable::contiguous(tensor));
    return kept_.back().data_ptr();
  }

  MadeLayers layers;
  int64_t units = 0;

 private:
  std::vector<Tensor> kept_;
};

std::tuple<Tensor, Tensor> inverse(const Tensor& z, const std::vector<Tensor>& weights,
                                   const Optional& direct, const Tensor& offsets,
                                   int64_t activation, int64_t scale_map, double clamp) {
  Network network(z, 1, 2, weights, direct);
  MadeInverse args;
  args.net = network.layers;
  const int64_t rows = offsets.dim() == 2 && offsets.size(0) == 1 ? 1 : args.net.batch;
  check_like("offsets", offsets, z, {rows, network.units + 2 * args.net.steps});
  args.z = network.keep(z);
  args.offsets = network.keep(offsets);
  args.offsets_stride = rows == 1 ? 0 : offsets.size(1);
  STD_TORCH_CHECK(activation >= 0 && activation < 4 && scale_map > 0 && scale_map < 6,
                  "activation, scale_map: expected known ones");
  args.activation = int(activation);
  args.scale_map = int(scale_map);
  args.clamp = clamp;
  Tensor x = empty_contiguous(z, sizes_of(z), z.scalar_type());
  Tensor log_det = empty_contiguous(z, {args.net.batch}, z.scalar_type());
  args.x = x.data_ptr();
  args.log_det = log_det.data_ptr();
  made_inverse_cpu(args);
  return {x, log_det};
}

Tensor solve(const Tensor& grad, const Tensor& diagonal, const Tensor& partial,
             const Tensor& slopes, const std::vector<Tensor>& weights, const Optional& direct) {
  STD_TORCH_CHECK(partial.dim() == 3, "partial: expected (B, D, P)");
  Network network(grad, partial.size(2), 1, weights, direct);
  MadeSolve args;
  args.net = network.layers;
  check_like("diagonal", diagonal, grad, sizes_of(grad));
  check_like("partial", partial, grad, {args.net.batch, args.net.steps, args.net.inputs});
  check_like("slopes", slopes, grad, {args.net.batch, network.units});
  args.grad = network.keep(grad);
  args.diagonal = network.keep(diagonal);
  args.partial = network.keep(partial);
  args.slopes = network.keep(slopes);
  Tensor v = empty_contiguous(grad, sizes_of(grad), grad.scalar_type());
  args.v = v.data_ptr();
  made_solve_cpu(args);
  return v;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "made_inverse(Tensor z, Tensor[] weights, Tensor? direct, Tensor offsets, int activation, "
      "int scale_map, float clamp) -> (Tensor, Tensor)");
  m.def(
      "made_solve(Tensor grad, Tensor diagonal, Tensor partial, Tensor slopes, Tensor[] weights, "
      "Tensor? direct) -> Tensor");
}

// CPUs only: elsewhere gmfast/ops/made_inverse.py computes in plain PyTorch.
STABLE_TORCH_LIBRARY_IMPL(gmfast, CPU, m) {
  m.impl("made_inverse", TORCH_BOX(&gmfast::inverse));
  m.impl("made_solve", TORCH_BOX(&gmfast::solve));
}
