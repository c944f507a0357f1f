#include "../logistic_mixture_cdf.h"

#include <optional>
#include <tuple>

#include "../sample_sum.h"
#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

// Dimensions [1, split) of x are the rows of a sample, [split, dim) its columns.
bool has_rows_and_columns(const Tensor& tensor, int64_t dim, int64_t split, Extent& rows,
                          Extent& columns) {
  const Sizes order = memory_order(dim, false);
  return collapse(tensor, order, 1, split, rows) && collapse(tensor, order, split, dim, columns);
}

// The first split at which most tensors are read in place; where an output has its channels
// innermost, dimension 1 must be the rows.
int64_t choose_split(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                     int64_t dim) {
  for (const Tensor& output : outputs) {
    if (channels_innermost(output)) return 2;
  }
  int64_t best = 1, most = -1;
  for (int64_t split = 1; split <= dim; ++split) {
    int64_t count = 0;
    Extent rows, columns;
    for (const Tensor& input : inputs) {
      const int64_t weight = input.dim() > dim ? 2 : 1;  // a parameter is K times as large
      if (has_rows_and_columns(input, dim, split, rows, columns)) count += weight;
    }
    if (count > most) best = split, most = count;
  }
  return best;
}

// Tensors as the kernels see them; copies live as long as this.
class Views {
 public:
  Views(int64_t dim, int64_t split) : dim_(dim), split_(split) {}

  bool can_walk(const Tensor& tensor) const {
    Extent rows, columns;
    return has_rows_and_columns(tensor, dim_, split_, rows, columns);
  }

  MixtureTensor operator()(const Tensor& tensor) {
    Extent rows, columns;
    if (!has_rows_and_columns(tensor, dim_, split_, rows, columns)) {
      copies_.push_back(torch::stable::contiguous(tensor));
      return (*this)(copies_.back());
    }
    MixtureTensor view;
    view.data = tensor.data_ptr();
    view.dtype = dtype_of(tensor);
    view.batch_stride = tensor.stride(0);
    view.row_stride = rows.stride;
    view.column_stride = columns.stride;
    view.component_stride = tensor.dim() > dim_ ? tensor.stride(dim_) : 0;
    return view;
  }

 private:
  int64_t dim_, split_;
  std::vector<Tensor> copies_;
};

MixtureShape shape_of(const Tensor& x, const std::vector<Tensor>& params, int64_t split) {
  const int64_t dim = x.dim();
  MixtureShape shape;
  shape.batch = x.size(0);
  shape.rows = shape.columns = 1;
  for (int64_t d = 1; d < dim; ++d) (d < split ? shape.rows : shape.columns) *= x.size(d);
  shape.components = params[0].size(dim);
  return shape;
}

void check(const Tensor& x, const std::vector<Tensor>& params) {
  const int64_t dim = x.dim();
  STD_TORCH_CHECK(dim >= 1, "x: expected (B, *D)");
  for (const Tensor& param : params) {
    STD_TORCH_CHECK(param.dim() == dim + 1 && param.size(dim) > 0 &&
                        param.size(dim) == params[0].size(dim) && same_device(param, x),
                    "logits, means and log_scales: expected (B, *D, K) on the device of x");
    for (int64_t d = 0; d < dim; ++d) {
      STD_TORCH_CHECK(param.size(d) == x.size(d), "x and its parameters: sizes differ");
    }
  }
}

// y, its log-determinant or, with `per_element`, log-derivative, and y in the dtype computed in,
// empty where that is y's own or not wanted.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& logits,
                                           const Tensor& means, const Tensor& log_scales,
                                           bool inverse, bool per_element, bool want_solution) {
  const std::vector<Tensor> params{logits, means, log_scales};
  check(x, params);
  Tensor y = empty_as(x, sizes_of(x));
  const int64_t split = choose_split({x, logits, means, log_scales}, {y}, x.dim());
  Views view(x.dim(), split);
  LogisticMixtureCdf args{};
  args.shape = shape_of(x, params, split);
  args.inverse = inverse;
  args.x = view(x);
  args.logits = view(logits);
  args.means = view(means);
  args.log_scales = view(log_scales);
  args.y = view(y);
  const ScalarType dtype = scalar_type(args.compute());
  const bool solution_wanted = want_solution && x.scalar_type() != dtype;
  Tensor solution = empty_contiguous(x, solution_wanted ? sizes_of(x) : Sizes{0}, dtype);
  if (solution_wanted) args.solution = solution.data_ptr();
  Tensor log_derivative = empty_contiguous(x, sizes_of(x), dtype), log_det = log_derivative;
  args.log_derivative = log_derivative.data_ptr();
  if (!per_element) {
    log_det = empty_contiguous(x, {x.size(0)}, dtype);
    args.log_det = log_det.data_ptr();
  }
  Tensor scratch = scratch_for(
      x, x.is_cuda() ? SampleSum(args.shape.batch, args.shape.sample(), 1).scratch_bytes() : 0);
  args.scratch = scratch.data_ptr();
  GMFAST_RUN(logistic_mixture_cdf, x, args);
  return {y, log_det, solution};
}

// The gradients by x (of the direction called) and by each parameter, empty where bit 0, 1, ... of
// `wanted` is not set. Here x is the data, of the inverse the output.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_y,
                                                    const std::optional<Tensor>& grad_log_det,
                                                    const Tensor& x, const Tensor& logits,
                                                    const Tensor& means, const Tensor& log_scales,
                                                    bool inverse, bool per_element,
                                                    int64_t wanted) {
  const std::vector<Tensor> params{logits, means, log_scales};
  check(x, params);
  const DType compute = compute_dtype(compute_dtype(dtype_of(x), dtype_of(logits)),
                                      compute_dtype(dtype_of(means), dtype_of(log_scales)));
  if (grad_y) check_operand("grad_y", *grad_y, x, sizes_of(x), compute);
  if (grad_log_det) {
    check_operand("grad_log_det", *grad_log_det, x, per_element ? sizes_of(x) : Sizes{x.size(0)},
                  compute);
  }
  // A parameter's gradient lies in memory as it does, so that what follows need not transpose it.
  const auto gradient = [&](const Tensor& tensor, int bit) {
    if (!(wanted >> bit & 1)) return empty_contiguous(tensor, {0}, tensor.scalar_type());
    return bit == 0 ? empty_as(tensor, sizes_of(tensor)) : empty_in_order(tensor);
  };
  Tensor grads[] = {gradient(x, 0), gradient(logits, 1), gradient(means, 2),
                    gradient(log_scales, 3)};

  std::vector<Tensor> outputs;
  if (wanted & 1) outputs.push_back(grads[0]);
  const int64_t split = choose_split({x, logits, means, log_scales}, outputs, x.dim());
  Views view(x.dim(), split);
  LogisticMixtureCdfBackward args{};
  args.shape = shape_of(x, params, split);
  args.inverse = inverse;
  if (grad_y) args.grad_y = view(*grad_y);
  if (grad_log_det && per_element) args.grad_log_derivative = view(*grad_log_det);
  if (grad_log_det && !per_element) {
    args.grad_log_derivative.data = grad_log_det->data_ptr();
    args.grad_log_derivative.dtype = dtype_of(*grad_log_det);
    args.grad_log_derivative.batch_stride = grad_log_det->stride(0);
  }
  args.x = view(x);
  args.logits = view(logits);
  args.means = view(means);
  args.log_scales = view(log_scales);
  MixtureTensor* results[] = {&args.grad_x, &args.grad_logits, &args.grad_means,
                              &args.grad_log_scales};
  Tensor written[4];  // the gradients, or where those cannot be walked contiguous ones
  for (int i = 0; i < 4; ++i) {
    if (!(wanted >> i & 1)) continue;
    written[i] = view.can_walk(grads[i])
                     ? grads[i]
                     : empty_contiguous(grads[i], sizes_of(grads[i]), grads[i].scalar_type());
    *results[i] = view(written[i]);
  }
  GMFAST_RUN(logistic_mixture_cdf_backward, x, args);
  for (int i = 0; i < 4; ++i) {
    if (wanted >> i & 1 && !view.can_walk(grads[i])) {
      torch::stable::copy_(grads[i], written[i]);
    }
  }
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "logistic_mixture_cdf(Tensor x, Tensor logits, Tensor means, Tensor log_scales, "
      "bool inverse, bool per_element, bool want_solution) -> (Tensor, Tensor, Tensor)");
  m.def(
      "logistic_mixture_cdf_backward(Tensor? grad_y, Tensor? grad_log_det, Tensor x, "
      "Tensor logits, Tensor means, Tensor log_scales, bool inverse, bool per_element, "
      "int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("logistic_mixture_cdf", TORCH_BOX(&gmfast::forward));
  m.impl("logistic_mixture_cdf_backward", TORCH_BOX(&gmfast::backward));
}
