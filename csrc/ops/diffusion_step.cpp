#include "../args/diffusion_step.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "backend.h"
#include "codes.h"
#include "noise.h"

namespace gmfast {
namespace {

using Tensors = std::vector<Tensor>;
using Limit = std::optional<double>;

struct Inputs {
  const Tensor& x;
  const Tensor& model_output;
  const Tensor& table;
  const Tensors& others;
  int64_t present, step;
  Limit clip;
  int64_t seed;
  double guidance, guidance_rescale;
  Limit threshold, threshold_max;
  int64_t first;
};

// The bytes from the tensor's first element to behind its last.
struct Range {
  const char *first, *end;

  explicit Range(const Tensor& tensor) : first(static_cast<const char*>(tensor.data_ptr())) {
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    end = first + (last + 1) * tensor.element_size();
  }
};

// Whether a kernel that reads each element before it writes that element may write to `out`.
bool may_write(const Tensor& out, const Tensor& input) {
  if (out.numel() == 0) return true;
  const Range written(out), read(input);
  if (written.end <= read.first || read.end <= written.first) return true;
  if (written.first != read.first || out.scalar_type() != input.scalar_type()) return false;
  for (int64_t d = 0; d < out.dim(); ++d) {
    if (out.size(d) > 1 && out.stride(d) != input.stride(d)) return false;
  }
  return true;
}

// Walks all operands alike, and keeps what they point into.
class Operands {
  static constexpr size_t most = 12;

 public:
  Operands(const Tensor& x, const Sizes& sizes) : x_(x), sizes_(sizes) {
    tensors_.reserve(most);
    operands_.reserve(most);
  }

  void add(const char* name, const Tensor& tensor, RowOperand& operand) {
    const auto sizes = tensor.sizes();
    STD_TORCH_CHECK(sizes.size() == sizes_.size() &&
                        std::equal(sizes.begin(), sizes.end(), sizes_.begin()) &&
                        same_device(tensor, x_),
                    name, ": expected the shape and device of x");
    operand.dtype = dtype_of(tensor);
    compute = compute_dtype(compute, operand.dtype);
    flat_ = flat_ && tensor.is_contiguous();
    tensors_.push_back(tensor);
    operands_.push_back(&operand);
  }

  // Sets the operands' memory and the shape. `apart`: samples, or their elements' order, matter.
  void walk(DiffusionStep& args, bool apart) {
    const int64_t batch = x_.size(0);
    args.elements = batch ? x_.numel() / batch : 0;
    args.channels = 1;
    if (flat_) {
      if (!apart) args.elements = x_.numel();
      args.shape = {apart ? batch : 1, 1, args.elements};
      for (size_t i = 0; i < tensors_.size(); ++i) {
        RowOperand& operand = *operands_[i];
        operand.data = tensors_[i].data_ptr();
        operand.batch_stride = args.elements;
        operand.inner_stride = 1;
      }
      return;
    }
    // x leads; of one dimension, each element is a row.
    const bool vector = x_.dim() == 1;
    RowWalk walk(vector ? torch::stable::unsqueeze(x_, 1) : x_);
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const Tensor tensor = vector ? torch::stable::unsqueeze(tensors_[i], 1) : tensors_[i];
      const void* given = tensor.data_ptr();
      tensors_[i] = walk.add(tensor, *operands_[i]);
      if (operands_[i] == &args.result && args.result.data != given) copied_ = int64_t(i);
    }
    args.shape = walk.merged_shape();
    if (!vector && walk.channels_inner() && pixels_of(x_) > 1) args.channels = x_.size(1);
  }

  // The copy that the result was computed into, if it was.
  const Tensor* copied_result() const { return copied_ >= 0 ? &tensors_[copied_] : nullptr; }

  DType compute = DType::float32;

 private:
  const Tensor& x_;
  const Sizes& sizes_;
  bool flat_ = true;
  int64_t copied_ = -1;
  Tensors tensors_;
  std::vector<RowOperand*> operands_;
};

// The result, written to `out` if there is one, and what else was asked for.
Tensors run(const Inputs& in, const Tensor* out) {
  const Tensor& x = in.x;
  const Sizes sizes = sizes_of(x);
  STD_TORCH_CHECK(!sizes.empty(), "x: expected (B, *S)");
  STD_TORCH_CHECK(!out || sizes_of(*out) == sizes, "out: expected the shape of x");
  STD_TORCH_CHECK(in.table.dim() == 2 && in.table.size(1) == step_columns && in.table.size(0) > 0 &&
                      in.table.scalar_type() == ScalarType::Double && same_device(in.table, x),
                  "table: expected float64 (steps, 20) on the device of x");
  DiffusionStep args{};
  const Tensor table = in.table.stride(1) == 1 ? in.table : torch::stable::contiguous(in.table);
  args.table = static_cast<const double*>(table.data_ptr());
  args.table_rows = table.size(0);
  args.table_stride = table.stride(0);
  args.guidance = in.guidance;
  args.clip = in.clip.value_or(INFINITY);
  args.threshold = in.threshold.value_or(-1);
  args.threshold_max = in.threshold_max.value_or(INFINITY);
  STD_TORCH_CHECK(in.guidance == in.guidance && in.guidance_rescale >= 0 &&
                      in.guidance_rescale <= 1 && args.clip >= 0 &&
                      (!in.threshold || args.threshold >= 0) && args.threshold <= 1 &&
                      args.threshold_max > 0,
                  "expected options in their ranges");

  Operands operands(x, sizes);
  operands.add("x", x, args.x);
  operands.add("model_output", in.model_output, args.m);
  size_t next = 0;
  const auto take = [&]() -> const Tensor& {
    STD_TORCH_CHECK(next < in.others.size(), "expected as many tensors as there are");
    return in.others[next++];
  };
  bool direct = true;  // the result may be written to `out`
  const auto add = [&](const char* name, RowOperand& operand) {
    const Tensor& tensor = take();
    operands.add(name, tensor, operand);
    direct = direct && (!out || may_write(*out, tensor));
  };
  if (in.present & DiffusionOption::unconditional) {
    add("unconditional", args.unconditional);
    args.rescale = in.guidance_rescale;
  }
  if (in.present & DiffusionOption::variance) add("variance", args.variance);
  if (in.present & DiffusionOption::noise) add("noise", args.noise);
  args.step = in.step;
  if (in.present & DiffusionOption::steps) {
    const Tensor& steps = take();
    const int64_t count = steps.numel();
    STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && same_device(steps, x) &&
                        (count == 1 || (steps.dim() == 1 && count == sizes[0])),
                    "step: expected int64 () or (B,) on the device of x");
    args.steps = static_cast<const int64_t*>(steps.data_ptr());
    args.steps_stride = count == 1 ? 0 : steps.stride(0);
  } else {
    STD_TORCH_CHECK(in.step >= 0 && in.step < args.table_rows, "step: expected a row of the table");
  }
  args.draws = !args.noise.data && !(in.present & DiffusionOption::noise) &&
               (in.present & DiffusionOption::seeds || in.present & DiffusionOption::seed);
  args.seeds.value = in.seed;
  args.seeds.first = first_sample(in.first);
  if (in.present & DiffusionOption::seeds) args.seeds = seeds_of(take(), x, sizes[0], in.first);
  STD_TORCH_CHECK(in.others.size() - next <= 4, "history: expected at most 4 tensors");
  for (int h = 0; next < in.others.size(); ++h) add("history", args.history[h]);

  direct = direct && out && may_write(*out, x) && may_write(*out, in.model_output);
  const ScalarType dtype = x.scalar_type();
  Tensors results;
  results.reserve(3);
  results.push_back(direct ? *out : empty_as(x, sizes, dtype));
  operands.add("out", results.back(), args.result);
  if (in.present & DiffusionOption::x0) {
    results.push_back(empty_as(x, sizes, dtype));
    operands.add("x0", results.back(), args.x0);
  }
  if (in.present & DiffusionOption::kept) {
    results.push_back(empty_as(x, sizes, dtype));
    operands.add("kept", results.back(), args.kept);
  }
  args.compute = operands.compute;
  operands.walk(args, args.draws || args.of_samples() || args.steps_stride != 0);
  GMFAST_RUN(diffusion_step, x, args);
  if (const Tensor* copy = operands.copied_result()) {
    torch::stable::copy_(results[0], x.dim() == 1 ? torch::stable::squeeze(*copy, 1) : *copy);
  }
  if (out && !direct) {
    Tensor to = *out;
    torch::stable::copy_(to, results[0]);
  }
  return results;
}

// Each argument that is given costs a call time: those that most calls leave alone come last.
Tensors step(const Tensor& x, const Tensor& model_output, const Tensor& table, Tensors others,
             int64_t present, int64_t step, Limit clip, int64_t seed, double guidance,
             double guidance_rescale, Limit threshold, Limit threshold_max, int64_t first) {
  return run({x, model_output, table, others, present, step, clip, seed, guidance, guidance_rescale,
              threshold, threshold_max, first},
             nullptr);
}

// x0 and the kept sum; of no elements where not wanted. Only operators that return single tensors
// besides what they change can be functionalized.
std::tuple<Tensor, Tensor> step_to(const Tensor& out, const Tensor& x, const Tensor& model_output,
                                   const Tensor& table, Tensors others, int64_t present,
                                   int64_t step, Limit clip, int64_t seed, double guidance,
                                   double guidance_rescale, Limit threshold, Limit threshold_max,
                                   int64_t first) {
  STD_TORCH_CHECK(out.scalar_type() == x.scalar_type(), "out: expected the dtype of x");
  for (int64_t d = 0; d < out.dim(); ++d) {
    STD_TORCH_CHECK(out.size(d) <= 1 || out.stride(d) != 0, "out: expected no expanded tensor");
  }
  const Tensors results = run({x, model_output, table, others, present, step, clip, seed, guidance,
                               guidance_rescale, threshold, threshold_max, first},
                              &out);
  const auto nothing = [&] { return empty_contiguous(x, {0}, x.scalar_type()); };
  return {present & DiffusionOption::x0 ? results[1] : nothing(),
          present & DiffusionOption::kept ? results.back() : nothing()};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
#define GMFAST_STEP_ARGUMENTS                                                               \
  "Tensor x, Tensor model_output, Tensor table, Tensor[] others, int present, int step=0, " \
  "float? clip=None, int seed=0, float guidance=1.0, float guidance_rescale=0.0, "          \
  "float? threshold=None, float? threshold_max=None, int first=0"
  m.def("diffusion_step(" GMFAST_STEP_ARGUMENTS ") -> Tensor[]");
  m.def("diffusion_step_to(Tensor(a!) out, " GMFAST_STEP_ARGUMENTS ") -> (Tensor, Tensor)");
#undef GMFAST_STEP_ARGUMENTS
}

GMFAST_REGISTER(m) {
  m.impl("diffusion_step", TORCH_BOX(&gmfast::step));
  m.impl("diffusion_step_to", TORCH_BOX(&gmfast::step_to));
}
