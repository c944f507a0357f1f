// Decode programs on a GPU: see test_decode.py.
#include "../../csrc/cuda/decode.cu"

#include <map>

#include "../native/decode.h"

using namespace gmfast;

namespace {

// The test's memory, by the addresses at which structs know it.
class Addresses {
 public:
  // The next `count` memories, an address before each.
  Addresses(Cases& cases, int64_t count) {
    for (; count > 0; --count) {
      const uintptr_t address = cases.integer();
      memories_[address] = cases.memory();
    }
  }

  template <class T>
  void move(T*& pointer) const {
    if (!pointer) return;
    const auto after = memories_.upper_bound(reinterpret_cast<uintptr_t>(pointer));
    const auto& [address, memory] = *std::prev(after);
    pointer = reinterpret_cast<T*>(memory + (reinterpret_cast<uintptr_t>(pointer) - address));
  }

 private:
  std::map<uintptr_t, char*> memories_;
};

}  // namespace

void run_case(Cases& cases) {
  DecodeCudaRun args{};
  DecodeProgram& program = args.run.program;
  Structs<DecodeValue> values;
  Structs<DecodeLayer> layers;
  const auto taps = read_program(cases, program, values, layers);
  DecodeStrip* const strips = reinterpret_cast<DecodeStrip*>(taps.data);
  const Addresses addresses(cases, cases.integer());
  for (int64_t i = 0; i < values.count; ++i) addresses.move(values.data[i].data);
  for (int64_t i = 0; i < taps.count; ++i) {
    addresses.move(strips[i].value.data);
    addresses.move(strips[i].weight);
  }
  for (int64_t i = 0; i < layers.count; ++i) {
    addresses.move(layers.data[i].weight);
    addresses.move(layers.data[i].bias);
    addresses.move(layers.data[i].context);
  }
  args.strips = strips;

  DecodeRun& run = args.run;
  run.batch = cases.integer();
  const int64_t end = cases.integer();
  const int64_t steps = cases.integer();     // 0: sample
  const int64_t predicts = cases.integer();  // the first step takes nothing
  run.x_channels = cases.integer();
  run.x_positions = run.features_positions = cases.integer();
  run.temperature = cases.real();
  args.position = reinterpret_cast<int64_t*>(cases.memory());
  args.seed = reinterpret_cast<const int64_t*>(cases.memory());
  run.x = cases.memory();
  run.keep = reinterpret_cast<const uint8_t*>(cases.memory());
  run.samples = reinterpret_cast<const int64_t*>(cases.memory());
  run.features = cases.memory();
  run.cursor = reinterpret_cast<int64_t*>(cases.memory());
  char* const said = cases.memory();  // after each step: `bytes` of a value from `seen`
  const int64_t bytes = cases.integer();
  const char* seen = reinterpret_cast<const char*>(cases.integer());
  const int64_t* like = reinterpret_cast<const int64_t*>(cases.memory());
  if (steps == 0) {
    // As graphs are replayed: with the launches recorded at another position of the same kind.
    for (int64_t position = 0; position < end; ++position) {
      run.position = like[position];
      run.end = run.position + 1;
      decode_cuda(args, nullptr);
    }
    return;
  }

  // x is (steps, batch, channels), features (steps, batch, channels, 1).
  run.end = end;
  addresses.move(seen);
  const int64_t size = program.dtype == DType::float64 ? 8 : 4;
  const char* fed = static_cast<const char*>(run.x);
  const char* features = static_cast<const char*>(run.features);
  run.stop_at_draw = true;
  run.features_positions = 1;
  for (int64_t step = 0; step < steps; ++step) {
    run.position = run.cursor[0];
    run.step = run.cursor[1];
    run.first_feature = run.cursor[0] + (run.cursor[1] > 0);
    run.fed = step == 0 && predicts ? nullptr : fed + step * run.batch * run.x_channels * size;
    run.features = features + step * run.batch * program.num_features * size;
    decode_cuda(args, nullptr);
    std::memcpy(said + step * bytes, seen, bytes);
  }
}
