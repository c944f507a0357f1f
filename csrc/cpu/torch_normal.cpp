#include "../args/torch_normal.h"

#include "../math/torch_normal.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

using U = Rebind<Native<float>, uint32_t>;

// Torch's engine, with the words in 32 bits.
class Twister {
 public:
  explicit Twister(const GeneratorState& state) : left_(state.left), next_(int(state.next)) {
    for (int i = 0; i < twister_words; ++i) words_[i] = uint32_t(state.words[i]);
  }

  void save(GeneratorState& state) const {
    state.left = left_;
    state.next = uint64_t(next_);
    for (int i = 0; i < twister_words; ++i) state.words[i] = words_[i];
  }

  // Some of the next words, at most `most`; returns how many.
  int64_t draw(uint32_t* out, int64_t most) {
    if (left_ == 1) {
      twist();
      left_ = twister_words + 1;
      next_ = 0;
    }
    const int count = most < left_ - 1 ? int(most) : left_ - 1;
    const uint32_t* from = words_ + next_;
    int i = 0;
    for (; i + lanes<U> <= count; i += lanes<U>) store(out + i, tempered(load<U>(from + i)));
    for (; i < count; ++i) store(out + i, tempered(from[i]));
    left_ -= count;
    next_ += count;
    return count;
  }

 private:
  static constexpr int middle = 397, copied = 16;
  static_assert(copied % lanes<U> == 0 && middle + copied < twister_words, "");

  void twist_range(int begin, int end, int distance) {
    for (int i = begin; i < end; i += lanes<U>) {
      store(words_ + i,
            twisted(load<U>(words_ + i), load<U>(words_ + i + 1), load<U>(words_ + i + distance)));
    }
  }

  // In place. The new words that follow the old ones in turn are copied behind them, so that no
  // vector has a part of each.
  void twist() {
    constexpr int whole = (twister_words - middle) / copied * copied;
    twist_range(0, whole, middle);
    for (int i = 0; i < copied; ++i) words_[twister_words + i] = words_[i];
    twist_range(whole, whole + copied, middle);
    twist_range(whole + copied, twister_words, middle - twister_words);
  }

  int32_t left_;
  int next_;
  alignas(64) uint32_t words_[twister_words + copied];
};

// Two blocks of 16 words, or one and anything: of each the first 8 give the radii, the others the
// angles; of the numbers the first 8 have the cosines.
template <class W>
GMFAST_HD void transform_two(W a, W b, Rebind<W, float>* x, Rebind<W, float>* y) {
  using F = Rebind<W, float>;
  using Lanes = std::make_integer_sequence<int, lanes<W>>;
  F cosines, sines;
  torch_normal_pair<F>(exchange<8, 0>(a, b, Lanes{}), exchange<8, 1>(a, b, Lanes{}), &cosines,
                       &sines);
  *x = exchange<8, 0>(cosines, sines, Lanes{});
  *y = exchange<8, 1>(cosines, sines, Lanes{});
}

// Blocks in place.
template <class W>
void transform(float* out, int64_t blocks) {
  using F = Rebind<W, float>;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(out);
  F x, y;
  if constexpr (lanes<W> == 16) {
    for (; blocks >= 2; blocks -= 2, out += 32, words += 32) {
      transform_two(load<W>(words), load<W>(words + 16), &x, &y);
      store(out, x);
      store(out + 16, y);
    }
    if (blocks) {
      const W block = load<W>(words);
      transform_two(block, block, &x, &y);
      store(out, x);
    }
  } else {
    for (; blocks; --blocks, out += 16, words += 16) {
      for (int i = 0; i < 8; i += lanes<W>) {
        torch_normal_pair<F>(load<W>(words + i), load<W>(words + i + 8), &x, &y);
        store(out + i, x);
        store(out + i + 8, y);
      }
    }
  }
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(torch_normal, TorchNormal) {
  Twister twister(*args.state);
  uint32_t* const words = reinterpret_cast<uint32_t*>(args.out);
  // The words that one twist makes become numbers while the cache has them.
  int64_t drawn = 0, done = 0;
  while (drawn < args.count) {
    drawn += twister.draw(words + drawn, args.count - drawn);
    const int64_t blocks = (drawn - done) / 16;
    transform<U>(args.out + done, blocks);
    done += 16 * blocks;
  }
  if (done < args.count) {  // the last 16 once more, from further words
    for (drawn = 0; drawn < 16;) drawn += twister.draw(words + args.count - 16 + drawn, 16 - drawn);
    transform<U>(args.out + args.count - 16, 1);
  }
  twister.save(*args.state);
}

}  // namespace gmfast
