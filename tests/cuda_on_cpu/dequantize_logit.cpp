// The kernels of dequantize_logit: see test_rows.py.
#include "../../csrc/cuda/dequantize_logit.cu"

#include "noise.h"

using namespace gmfast;

namespace {

void inputs(DequantizeLogitInputs& in, Cases& cases) {
  in.shape = row_shape(cases);
  in.compute = DType(cases.integer());
  in.alpha = cases.real();
  in.num_levels = cases.real();
  in.inverse = cases.integer();
  in.quantize = cases.integer();
  in.x_type = LevelType(cases.integer());
  in.x = row_operand(cases);
  in.noise = row_operand(cases);
  in.seeds = seeds(cases);
}

void forward(Cases& cases) {
  DequantizeLogit args{};
  inputs(args.in, cases);
  args.y = row_operand(cases);
  args.log_det = cases.memory();
  args.elements = args.in.shape.rows * args.in.shape.inner;
  const int64_t tile = 16 * (args.in.compute == DType::float64 ? 2 : 4);
  const int64_t blocks = (args.elements + tile - 1) / tile * 16;
  args.sum = args.in.seeds.data ? SampleSum(args.in.shape.batch, blocks, 8)
                                : SampleSum(args.in.shape.batch, args.elements, 32);
  const ScratchMemory scratch(args.sum.scratch_bytes());
  args.sum.scratch = scratch;
  dequantize_logit_cuda(args, nullptr);
}

void backward(Cases& cases) {
  DequantizeLogitBackward args{};
  inputs(args.in, cases);
  args.grad_y = row_operand(cases);
  args.grad_log_det = cases.memory();
  args.grad_log_det_stride = 1;
  args.grad_x = row_operand(cases);
  args.grad_noise = row_operand(cases);
  dequantize_logit_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
