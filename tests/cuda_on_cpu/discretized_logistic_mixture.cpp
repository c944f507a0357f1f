// The mixture's kernels: see test_discretized_logistic_mixture.py.
#include "../../csrc/cuda/discretized_logistic_mixture.cu"

#include "noise.h"

using namespace gmfast;

namespace {

void run_nll(Cases& cases) {
  LogisticMixtureNll args{};
  args.batch = cases.integer();
  args.pixels = cases.integer();
  args.channels = int(cases.integer());
  args.mixtures = cases.integer();
  args.num_classes = int(cases.integer());
  args.log_scale_min = cases.real();
  args.pixelcnnpp = cases.integer();
  args.total_over_batch = cases.integer();
  args.total_scale = cases.real();
  args.gradient_scale = cases.real();
  args.x = cases.image();
  args.params = cases.image();
  args.grad_x = cases.image();
  args.grad_params = cases.image();
  args.loss = cases.memory();
  args.total = cases.memory();
  discretized_logistic_mixture_nll_cuda(args, nullptr);
}

void run_sample(Cases& cases) {
  LogisticMixtureSample args{};
  args.batch = cases.integer();
  args.pixels = cases.integer();
  args.channels = int(cases.integer());
  args.mixtures = cases.integer();
  args.num_classes = int(cases.integer());
  args.log_scale_min = cases.real();
  args.temperature = cases.real();
  args.quantize = cases.integer();
  args.params = cases.image();
  args.seeds = seeds(cases);
  args.x = cases.memory();
  discretized_logistic_mixture_sample_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? run_nll(cases) : run_sample(cases); }
