#include "../args/affine_coupling.h"

#include <optional>
#include <tuple>

#include "backend.h"
#include "codes.h"
#include "layout.h"

namespace gmfast {
namespace {

// The sizes of a call, and its tensors as the kernels see them. Keeps what is copied alive.
class Call {
 public:
  Call(const Tensor& x, const Tensor& shift, const std::optional<Tensor>& scale,
       const std::optional<Tensor>& mask, int64_t map, int64_t packing, bool shift_first,
       double clamp, bool inverse)
      : packing_(Packing(packing)) {
    STD_TORCH_CHECK(x.dim() >= 2 && shift.dim() == x.dim(), "x and shift: expected (B, C, *S)");
    STD_TORCH_CHECK(packing >= 0 && packing <= 2 && map >= 0 && map <= 5,
                    "scale_map, packing: out of range");
    STD_TORCH_CHECK((map != 0) == (scale.has_value() || packing != 0),
                    "scale: expected one unless the coupling is additive");
    const int64_t per_channel = packing_ == Packing::separate ? 1 : 2;
    STD_TORCH_CHECK(shift.size(1) % per_channel == 0 && shift.size(1) / per_channel <= x.size(1),
                    "shift: expected at most the channels of x");
    for (int64_t d = 0; d < x.dim(); ++d) {
      STD_TORCH_CHECK(d == 1 || shift.size(d) == x.size(d), "shift: sizes differ from those of x");
    }
    STD_TORCH_CHECK(same_device(shift, x), "shift: expected the device of x");
    STD_TORCH_CHECK(!scale || (sizes_of(*scale) == sizes_of(shift) && same_device(*scale, x)),
                    "scale: expected the shape and device of shift");
    transformed_ = shift.size(1) / per_channel;
    kept_ = x.size(1) - transformed_;
    pixels_ = pixels_of(x);
    channels_inner_ = channels_innermost(x) || pixels_ == 1;
    if (transformed_ == 1 && channels_inner_) channels_inner_ = pixels_ == 1;

    args.batch = x.size(0);
    args.map = ScaleMap(map);
    args.shift_first = shift_first;
    args.inverse = inverse;
    args.clamp = clamp;
    args.compute = compute_dtype(dtype_of(x), dtype_of(shift));
    if (scale) args.compute = compute_dtype(args.compute, dtype_of(*scale));
    set_image(x, args.kept_x, args.x);
    set_params(shift, scale, args.shift, args.scale);
    if (mask) {
      STD_TORCH_CHECK(kept_ == 0, "mask: expected all channels transformed");
      Sizes sizes = sizes_of(x);
      sizes[0] = 1;
      check_operand("mask", *mask, x, sizes, args.compute);
      RowOperand none;
      set_image(*mask, none, args.mask);
      args.mask.batch_stride = 0;
    }
  }

  // The first channels and the transformed ones of a tensor like x.
  void set_image(const Tensor& tensor, RowOperand& kept, RowOperand& transformed) {
    const Image image = image_of(hold(tensor));
    if (kept_ > 0) kept = operand(image, 0, 1);
    transformed = operand(image, kept_, 1);
  }

  void set_params(const Tensor& shift, const std::optional<Tensor>& scale, RowOperand& to_shift,
                  RowOperand& to_scale) {
    const Image image = image_of(hold(shift));
    to_shift = operand(image, 0, packing_ == Packing::interleaved ? 2 : 1);
    if (packing_ == Packing::chunk) to_scale = operand(image, transformed_, 1);
    if (packing_ == Packing::interleaved) to_scale = operand(image, 1, 2);
    if (scale) to_scale = operand(image_of(hold(*scale)), 0, 1);
  }

  // When all tensors are set: rows that follow each other everywhere become one.
  void finish() {
    AffineCoupling& a = args;
    const auto sizes = [&](int64_t channels, int64_t& rows, int64_t& inner) {
      rows = channels_inner_ ? pixels_ : channels;
      inner = channels_inner_ ? channels : pixels_;
    };
    sizes(transformed_, a.rows, a.inner);
    sizes(kept_, a.kept_rows, a.kept_inner);
    join(a.rows, a.inner,
         {&a.x, &a.shift, &a.scale, &a.mask, &a.y, &a.grad_y, &a.grad_x, &a.grad_shift,
          &a.grad_scale});
    join(a.kept_rows, a.kept_inner, {&a.kept_x, &a.kept_y, &a.kept_grad_y, &a.kept_grad_x});
  }

  AffineCoupling args{};

 private:
  Tensor hold(const Tensor& tensor) {
    held_.push_back(with_one_pixel_stride(tensor));
    return held_.back();
  }

  RowOperand operand(const Image& image, int64_t first, int64_t step) const {
    RowOperand o;
    o.data =
        static_cast<char*>(image.data) + first * image.channel_stride * element_size(image.dtype);
    o.dtype = image.dtype;
    o.batch_stride = image.batch_stride;
    const int64_t channel = step * image.channel_stride;
    o.row_stride = channels_inner_ ? image.pixel_stride : channel;
    o.inner_stride = channels_inner_ ? channel : image.pixel_stride;
    return o;
  }

  static void join(int64_t& rows, int64_t& inner, std::initializer_list<RowOperand*> operands) {
    if (rows <= 1) return;
    for (const RowOperand* o : operands) {
      if (o->data && inner > 1 && o->row_stride != inner * o->inner_stride) return;
    }
    for (RowOperand* o : operands) {
      if (inner == 1) o->inner_stride = o->row_stride;
    }
    inner *= rows;
    rows = 1;
  }

  Packing packing_;
  int64_t transformed_, kept_, pixels_;
  bool channels_inner_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shift,
                                   const std::optional<Tensor>& scale,
                                   const std::optional<Tensor>& mask, int64_t map, int64_t packing,
                                   bool shift_first, double clamp, bool inverse, bool) {
  Call call(x, shift, scale, mask, map, packing, shift_first, clamp, inverse);
  Tensor y = empty_as(x, sizes_of(x));
  Tensor log_det = empty_contiguous(x, {x.size(0)}, scalar_type(call.args.compute));
  call.set_image(y, call.args.kept_y, call.args.y);
  call.args.log_det = log_det.data_ptr();
  call.finish();
  const Tensor scratch = scratch_for(x, x.is_cuda() ? call.args.scratch_bytes() : 0);
  call.args.scratch = scratch.data_ptr();
  GMFAST_RUN(affine_coupling, x, call.args);
  return {y, log_det};
}

// `x` is y where `from_output`. The gradients of x, shift and scale, or of x and the tensor of
// both; empty where not wanted.
std::tuple<Tensor, Tensor, Tensor> backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_log_det, const Tensor& x,
    const Tensor& shift, const std::optional<Tensor>& scale, const std::optional<Tensor>& mask,
    int64_t map, int64_t packing, bool shift_first, double clamp, bool inverse, bool from_output,
    bool want_x, bool want_shift, bool want_scale) {
  Call call(x, shift, scale, mask, map, packing, shift_first, clamp, inverse);
  AffineCoupling& args = call.args;
  args.from_output = from_output;
  if (grad_y) {
    check_like("grad_y", *grad_y, x, sizes_of(x));
    call.set_image(*grad_y, args.kept_grad_y, args.grad_y);
  }
  if (grad_log_det) {
    STD_TORCH_CHECK(sizes_of(*grad_log_det) == Sizes{x.size(0)} &&
                        (grad_log_det->scalar_type() == ScalarType::Float ||
                         grad_log_det->scalar_type() == ScalarType::Double) &&
                        same_device(*grad_log_det, x),
                    "grad_log_det: expected (B,), float32 or float64");
    args.grad_log_det = grad_log_det->data_ptr();
    args.grad_log_det_dtype = dtype_of(*grad_log_det);
    args.grad_log_det_stride = grad_log_det->stride(0);
  }
  const auto gradient = [](const Tensor& tensor, bool wanted) {
    return empty_as(tensor, wanted ? sizes_of(tensor) : Sizes{0});
  };
  Tensor grad_x = gradient(x, want_x), grad_shift = gradient(shift, want_shift);
  Tensor grad_scale = gradient(scale ? *scale : shift, scale && want_scale);
  if (want_x) call.set_image(grad_x, args.kept_grad_x, args.grad_x);
  RowOperand of_shift, of_scale;
  if (Packing(packing) != Packing::separate) {
    if (want_shift) call.set_params(grad_shift, std::nullopt, args.grad_shift, args.grad_scale);
  } else {
    if (want_shift) call.set_params(grad_shift, std::nullopt, args.grad_shift, of_scale);
    if (scale && want_scale) call.set_params(grad_scale, std::nullopt, args.grad_scale, of_shift);
  }
  call.finish();
  GMFAST_RUN(affine_coupling_backward, x, call.args);
  return {grad_x, grad_shift, grad_scale};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "affine_coupling(Tensor x, Tensor shift, Tensor? scale, Tensor? mask, int scale_map, "
      "int packing, bool shift_first, float clamp, bool inverse, bool recompute) -> (Tensor, "
      "Tensor)");
  m.def(
      "affine_coupling_backward(Tensor? grad_y, Tensor? grad_log_det, Tensor x, Tensor shift, "
      "Tensor? scale, Tensor? mask, int scale_map, int packing, bool shift_first, float clamp, "
      "bool inverse, bool from_output, bool want_x, bool want_shift, bool want_scale) -> (Tensor, "
      "Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("affine_coupling", TORCH_BOX(&gmfast::forward));
  m.impl("affine_coupling_backward", TORCH_BOX(&gmfast::backward));
}
