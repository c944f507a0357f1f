// Runs decode programs recorded by tests/decode/test_sanitizers.py under a sanitizer.
//
// Each runs on teams of 1 to 4 threads, a few positions at a time, with pauses in which the threads
// fall asleep, and once more with its draws fed one by one. All must end with the same bits.
#include "../../csrc/args/decode.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "../../csrc/common/team.h"
#include "decode.h"

using namespace gmfast;

// The linker's --wrap directs the executor's barriers here, but not those inside Team.
bool without_barrier = false;
extern "C" void __real__ZN6gmfast4Team7barrierEv(Team* team);
extern "C" void __wrap__ZN6gmfast4Team7barrierEv(Team* team) {
  if (!without_barrier) __real__ZN6gmfast4Team7barrierEv(team);
}

namespace {

// A separate allocation of exactly this size, so that AddressSanitizer knows its end.
using Block = std::vector<char>;

// Memory of the process that recorded a program, by its address there.
struct Recorded {
  uintptr_t address;
  Block block;
};

// Translates an address in that process to one in these blocks.
template <class Pointer>
void relocate(Pointer& pointer, std::vector<Recorded>& memory) {
  for (Recorded& recorded : memory) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - recorded.address;
    if (offset < recorded.block.size()) {
      pointer = recorded.block.data() + offset;
      return;
    }
  }
}

struct Case {
  explicit Case(Cases& cases) {
    const auto taps = read_program(cases, run.program, values, layers);
    run.program.taps = reinterpret_cast<const DecodeTap*>(taps.data);
    for (int64_t count = cases.integer(); count > 0; --count) {
      const uintptr_t address = cases.integer();
      memory.push_back({address, Block(cases.integer())});
      std::copy_n(cases.memory(), memory.back().block.size(), memory.back().block.data());
    }
    run.batch = cases.integer();
    run.end = cases.integer();
    run.x_channels = cases.integer();
    run.x_positions = run.features_positions = cases.integer();
    run.seed = cases.integer();
    run.temperature = cases.real();
    run.x = cases.memory();
    run.keep = reinterpret_cast<uint8_t*>(cases.memory());
    run.samples = reinterpret_cast<int64_t*>(cases.memory());
    run.features = cases.memory();
  }

  int64_t element_size() const { return run.program.dtype == DType::float64 ? 8 : 4; }
  int64_t x_bytes() const { return run.batch * run.x_channels * run.x_positions * element_size(); }

  DecodeRun run{};
  Structs<DecodeValue> values;
  Structs<DecodeLayer> layers;
  std::vector<Recorded> memory;  // of weights and values
};

class Execution {
 public:
  Execution(const Case& from, int threads)
      : case_(from),
        team_(threads),
        run_(from.run),
        values_(from.values.data, from.values.data + from.values.count),
        layers_(from.layers.data, from.layers.data + from.layers.count),
        memory_(from.memory),
        x_(from.x_bytes()) {
    for (DecodeValue& value : values_) relocate(value.data, memory_);
    for (DecodeLayer& layer : layers_) {
      relocate(layer.weight, memory_);
      relocate(layer.bias, memory_);
      relocate(layer.context, memory_);
    }
    std::copy_n(static_cast<const char*>(run_.x), x_.size(), x_.data());
    run_.x = x_.data();
    run_.program.values = values_.data();
    run_.program.layers = layers_.data();
    run_.team = &team_;
    run_.cursor = cursor_;
  }

  void sample() {
    for (int64_t piece = 1; cursor_[0] < case_.run.end; ++piece) {
      go(std::min(case_.run.end, cursor_[0] + piece));
      if (piece < 3) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  // As `sample`, with `x` in place of what is drawn.
  void feed(const char* x) {
    run_.stop_at_draw = true;
    run_.features_positions = 1;
    const char* features = static_cast<const char*>(case_.run.features);
    const int64_t size = case_.element_size();
    const auto pick = [&](const char* from, int64_t rows, int64_t row_length, int64_t at) {
      Block picked(rows * size);
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(from + (row * row_length + at) * size, size, picked.data() + row * size);
      }
      return picked;
    };
    Block fed(0);
    while (true) {
      const int64_t position = cursor_[0] + (cursor_[1] > 0);  // whose layers run
      Block local(0);
      if (features && position < case_.run.end) {
        local = pick(features, run_.batch * run_.program.num_features, run_.x_positions, position);
      }
      run_.features = local.data();
      run_.first_feature = position;
      go(case_.run.end);
      if (cursor_[0] == case_.run.end) return;
      const DecodeStep& step = run_.program.steps[cursor_[1]];
      const DecodeDraw& draw = run_.program.draws[step.begin];
      fed = Block(run_.batch * draw.channels * size);
      for (int64_t b = 0; b < run_.batch; ++b) {
        const int64_t first = (b * run_.x_channels + draw.first_channel) * run_.x_positions;
        const Block values = pick(x + first * size, draw.channels, run_.x_positions,
                                  draw.position < 0 ? cursor_[0] : draw.position);
        std::copy_n(values.data(), values.size(), fed.data() + b * values.size());
      }
      run_.fed = fed.data();
    }
  }

  const Block& x() const { return x_; }

  // Whether both remember the same.
  bool operator==(const Execution& other) const {
    return std::equal(memory_.begin(), memory_.end(), other.memory_.begin(),
                      [](const Recorded& a, const Recorded& b) { return a.block == b.block; });
  }

 private:
  void go(int64_t end) {
    run_.position = cursor_[0];
    run_.step = cursor_[1];
    run_.end = end;
    GMFAST_JOIN(decode, GMFAST_LEVEL)(run_);
  }

  const Case& case_;
  Team team_;
  DecodeRun run_;
  std::vector<DecodeValue> values_;
  std::vector<DecodeLayer> layers_;
  std::vector<Recorded> memory_;
  Block x_;
  int64_t cursor_[2] = {0, 0};
};

void check(bool same, const char* what) {
  if (same) return;
  std::fprintf(stderr, "other bits %s\n", what);
  std::exit(1);
}

}  // namespace

void run_case(Cases& cases) {
  without_barrier = cases.integer();
  const Case program(cases);
  Execution alone(program, 1);
  alone.sample();
  for (int threads = 2; threads <= 4; ++threads) {
    Execution together(program, threads);
    together.sample();
    check(together == alone && together.x() == alone.x(), "of several threads");
  }
  Execution fed(program, 2);
  fed.feed(alone.x().data());
  check(fed == alone, "when fed");
  std::copy_n(alone.x().data(), alone.x().size(), static_cast<char*>(program.run.x));
}
