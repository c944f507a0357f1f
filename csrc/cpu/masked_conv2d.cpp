#include "../args/masked_conv2d.h"

#include <vector>

#include "../common/parallel.h"
#include "../math/masked_conv2d.h"
#include "conv.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// A pass over images with the live taps of a weight: the convolution, or its gradient by the input,
// which is the convolution with mirrored taps and the channels' roles exchanged.
struct Pass {
  const MaskedConv2d& conv;
  bool transposed;
  std::vector<ConvTap> taps;  // the current pixel's last, where it is live

  Pass(const MaskedConv2d& args, bool gradient) : conv(args), transposed(gradient) {
    for (int64_t t = 0; t < live_taps(conv.support); ++t) {
      ConvTap live = tap(conv.support, t);
      if (transposed) live.row_offset *= -1, live.column_offset *= -1;
      taps.push_back(live);
    }
  }

  const Grid& input() const { return transposed ? conv.y : conv.x; }
  const Grid& output() const { return transposed ? conv.x : conv.y; }
  int64_t in_channels() const { return transposed ? conv.out_channels : conv.in_channels; }
  int64_t out_channels() const { return transposed ? conv.in_channels : conv.out_channels; }

  // Where there is input, and where output is wanted.
  Window inside() const { return {0, conv.height, transposed ? 0 : -conv.left, conv.width}; }
  Window wanted() const { return {0, conv.height, transposed ? -conv.left : 0, conv.width}; }

  // The input that `window` of the output looks at.
  Window seen_from(Window window) const {
    Window seen = window;
    for (const ConvTap& live : taps) {
      seen.row = std::min(seen.row, window.row + live.row_offset);
      seen.row_end = std::max(seen.row_end, window.row_end + live.row_offset);
      seen.column = std::min(seen.column, window.column + live.column_offset);
      seen.column_end = std::max(seen.column_end, window.column_end + live.column_offset);
    }
    return seen;
  }

  int64_t earlier() const { return earlier_taps(conv.support); }
  bool has_current() const { return int64_t(taps.size()) > earlier(); }

  // At the current pixel, output channel `out` sees input channels [first, second).
  std::pair<int64_t, int64_t> current_range(int64_t out) const {
    if (transposed) {
      return {first_seeing_channel(conv.support, out, conv.out_channels, conv.in_channels),
              conv.out_channels};
    }
    return {0, visible_channels(conv.support, out, conv.out_channels, conv.in_channels)};
  }

  // The weight from input channel `in` to output channel `out`.
  template <class T>
  const T* weight(int64_t group, int64_t out, int64_t in, const ConvTap& live) const {
    return at<const T>(conv.weight, group * conv.out_channels + (transposed ? in : out),
                       transposed ? out : in, live.row, live.column);
  }

  int64_t panel_size() const { return in_channels() * int64_t(taps.size()); }  // rows
};

// Weights as panels: for each panel of output channels, block of input channels and tap, a row of
// panel_width numbers for each channel of the block. Channels that are not there get zeros.
template <class S>
void pack_weights(const Pass& pass, S* packed) {
  constexpr int B = block_width<S>, P = panel_width<S>;
  const int64_t panels = blocks_of(pass.out_channels(), P);
  const int64_t blocks = blocks_of(pass.in_channels(), B), taps = int64_t(pass.taps.size());
  with_storage<S>(pass.conv.weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for(pass.conv.groups * panels * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t block = index % blocks, panel = index / blocks % panels;
        const int64_t group = index / blocks / panels;
        const int64_t in_end = std::min(pass.in_channels(), (block + 1) * B);
        const int64_t count = in_end - block * B;
        S* target = packed + ((group * panels + panel) * pass.panel_size() + block * B * taps) * P;
        for (int64_t p = 0; p < P; ++p) {
          const int64_t out = panel * P + p;
          if (out >= pass.out_channels()) {
            for (int64_t row = 0; row < taps * count; ++row) target[row * P + p] = 0;
            continue;
          }
          const auto [first, last] = pass.current_range(out);
          for (int64_t t = 0; t < taps; ++t) {
            const bool current = t == pass.earlier();
            for (int64_t in = block * B; in < in_end; ++in) {
              const bool live = !current || (in >= first && in < last);
              target[(t * count + in - block * B) * P + p] =
                  live ? load<S>(pass.weight<T>(group, out, in, pass.taps[t])) : S(0);
            }
          }
        }
      }
    });
  });
}

// Windows of a size that stays in the second-level cache once packed, all samples together.
struct Windows {
  Window all;
  int64_t batch, rows, columns;  // of a window, but the last ones

  Windows(const Pass& pass, int64_t bytes_of_pixel, int64_t budget)
      : all(pass.wanted()), batch(pass.conv.batch) {
    const Window halo = pass.seen_from({0, 0, 0, 0});
    const int64_t room = std::max<int64_t>(budget / std::max<int64_t>(bytes_of_pixel, 1), 1);
    columns = std::clamp<int64_t>(all.columns(), 1, std::max<int64_t>(256, 4 * halo.columns()));
    // At least as many as are packed around them.
    rows =
        std::clamp<int64_t>(std::max(room / (columns + halo.columns()) - halo.rows(), halo.rows()),
                            1, std::max<int64_t>(all.rows(), 1));
    if (rows < all.rows()) rows = blocks_of(all.rows(), blocks_of(all.rows(), rows));
  }

  int64_t down() const { return blocks_of(all.rows(), rows); }
  int64_t across() const { return blocks_of(all.columns(), columns); }
  int64_t count() const { return batch * down() * across(); }
  int64_t sample(int64_t index) const { return index / across() / down(); }

  Window operator[](int64_t index) const {
    const int64_t row = all.row + index / across() % down() * rows;
    const int64_t column = all.column + index % across() * columns;
    return {row, std::min(row + rows, all.row_end), column,
            std::min(column + columns, all.column_end)};
  }
};

template <class S>
void run(const Pass& pass, const S* packed) {
  constexpr int B = block_width<S>, P = panel_width<S>;
  // Rows of a panel that stay in the first-level cache while a patch is computed.
  constexpr int64_t taps_together = 8;
  const int64_t in_channels = pass.in_channels(), out_channels = pass.out_channels();
  const int64_t blocks = blocks_of(in_channels, B), panels = blocks_of(out_channels, P);
  const Windows windows(pass, blocks * 64, 256 << 10);
  const Window largest = pass.seen_from({0, windows.rows, 0, windows.columns});
  const Grid& y = pass.output();
  const Grid& bias = pass.conv.bias;

  parallel_for(windows.count() * pass.conv.groups, 1, [&](int64_t begin, int64_t end) {
    const int64_t beyond = widest_tile * B;  // what the last tile of the last row reads
    Scratch<S> pixels(blocks * largest.pixels() * B + beyond);
    Scratch<S> sums(patch_pixels * widest_tile * P);  // rows may be as short as one pixel
    std::vector<int64_t> offsets(pass.taps.size());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t group = index / windows.count(),
                    sample = windows.sample(index % windows.count());
      const Window window = windows[index % windows.count()], seen = pass.seen_from(window);
      const int64_t block_stride = seen.pixels() * B;
      with_storage<S>(pass.input().dtype, [&](auto* type) {
        pack<std::remove_pointer_t<decltype(type)>>(pass.input(), sample, group * in_channels,
                                                    in_channels, seen, pass.inside(), pixels.get());
      });
      std::memset(pixels.get() + blocks * block_stride, 0, beyond * sizeof(S));
      for (size_t t = 0; t < offsets.size(); ++t) {
        offsets[t] = (pass.taps[t].row_offset * seen.columns() + pass.taps[t].column_offset) * B;
      }
      const S* corner =
          pixels.get() +
          ((window.row - seen.row) * seen.columns() + window.column - seen.column) * B;

      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * P, count = std::min<int64_t>(out_channels - first, P);
        const auto convolve = count > P / 2 ? convolve_row<S, 2> : convolve_row<S, 1>;
        // What the panel's channels together see at the current pixel: from their first or up to
        // their last.
        const auto current = pass.current_range(pass.transposed ? first : first + count - 1);
        S add[P] = {};
        if (bias.data && !pass.transposed) {
          with_storage<S>(bias.dtype, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            for (int64_t i = 0; i < count; ++i) {
              add[i] = load<S>(at<const T>(bias, 0, group * out_channels + first + i, 0, 0));
            }
          });
        }
        for_each_patch(window, [&](int64_t r, int64_t rows, int64_t c, int64_t columns) {
          const int64_t row_size = blocks_of(columns, widest_tile) * widest_tile * P;
          std::memset(sums.get(), 0, rows * row_size * sizeof(S));
          const S* weights = packed + (group * panels + panel) * pass.panel_size() * P;
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t channels = std::min<int64_t>(in_channels - block * B, B);
            const bool sees_current = pass.has_current() && block * B < current.second &&
                                      block * B + channels > current.first;
            const int64_t taps = pass.earlier() + sees_current;
            const S* x = corner + block * block_stride + (r * seen.columns() + c) * B;
            for (int64_t t = 0; t < taps; t += taps_together) {
              for (int64_t row = 0; row < rows; ++row) {
                convolve(x + row * seen.columns() * B, weights + t * channels * P, channels,
                         &offsets[t], std::min(taps - t, taps_together), columns,
                         sums.get() + row * row_size);
              }
            }
            weights += int64_t(pass.taps.size()) * channels * P;
          }
          with_storage<S>(y.dtype, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            for (int64_t row = 0; row < rows; ++row) {
              unpack_row(sums.get() + row * row_size, add, count, columns,
                         at<T>(y, sample, group * out_channels + first, window.row + r + row,
                               window.column + c),
                         y);
            }
          });
        });
      }
    }
  });
}

// The gradient by the weight is summed in panels too: panel, block, tap, channel of the block, then
// panel_width numbers. Windows are packed by the chunk; then every thread has sums of its
// own to which it adds all pixels of the chunk. So the order of additions is always the same.
template <class S>
void grad_weight(const MaskedConv2dGradWeight& args) {
  using V = Native<S>;
  constexpr int B = block_width<S>, P = panel_width<S>, L = lanes<V>;
  constexpr int tile = native_bytes == 64 ? 8 : 4;
  constexpr int64_t taps_together = 8;  // what the first-level cache holds of x serves all of these
  const MaskedConv2d& conv = args.forward;
  const Pass pass(conv, false);
  const int64_t taps = int64_t(pass.taps.size());
  const int64_t blocks = blocks_of(conv.in_channels, B), panels = blocks_of(conv.out_channels, P);
  const int64_t y_blocks = blocks_of(panels * P, B);
  const Windows windows(pass, (blocks + y_blocks) * 64, 1 << 20);
  const Window largest = pass.seen_from({0, windows.rows, 0, windows.columns});
  const int64_t x_size = blocks * largest.pixels() * B;
  const int64_t y_size = y_blocks * windows.rows * windows.columns * B;
  const int64_t chunk = std::clamp<int64_t>((int64_t(8) << 20) / (x_size + y_size + 1) / sizeof(S),
                                            1, std::max<int64_t>(windows.count(), 1));
  Scratch<S> x_packed(chunk * x_size), y_packed(chunk * y_size);
  Scratch<S> sums(panels * blocks * taps * B * P), bias_sums(panels * P);
  if (blocks_of(conv.out_channels, B) < y_blocks) {
    // Of a panel that has fewer channels, the blocks without any are read too, if to no end.
    std::memset(y_packed.get(), 0, chunk * y_size * sizeof(S));
  }
  const auto channels_of = [&](int64_t block) {
    return std::min<int64_t>(conv.in_channels - block * B, B);
  };
  // The sums of a pair of tap and channel: number tap * channels_of(block) + channel.
  const auto sums_of = [&](int64_t panel, int64_t block, int64_t pair) {
    return sums.get() + ((panel * blocks + block) * taps * B + pair) * P;
  };

  for (int64_t group = 0; group < conv.groups; ++group) {
    std::memset(sums.get(), 0, panels * blocks * taps * B * P * sizeof(S));
    std::memset(bias_sums.get(), 0, panels * P * sizeof(S));
    for (int64_t start = 0; start < windows.count(); start += chunk) {
      const int64_t count = std::min(chunk, windows.count() - start);
      parallel_for(2 * count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          const bool is_y = index % 2;
          const int64_t slot = index / 2, sample = windows.sample(start + slot);
          const Window window = windows[start + slot];
          const Grid& grid = is_y ? conv.y : conv.x;
          with_storage<S>(grid.dtype, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            if (is_y) {
              pack<T>(grid, sample, group * conv.out_channels, conv.out_channels, window, window,
                      y_packed.get() + slot * y_size);
            } else {
              pack<T>(grid, sample, group * conv.in_channels, conv.in_channels,
                      pass.seen_from(window), pass.inside(), x_packed.get() + slot * x_size);
            }
          });
        }
      });

      // The vectors of a panel in packed pixels of y: the first, and how far behind it the second.
      const auto y_at = [&](int64_t slot, const Window& window, int64_t panel) {
        return y_packed.get() + slot * y_size + panel * P / B * window.pixels() * B + panel * P % B;
      };
      const auto y_step = [&](const Window& window) { return L == B ? window.pixels() * B : L; };

      const int64_t bundles = blocks_of(taps, taps_together);
      parallel_for(panels * blocks * bundles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          const int64_t bundle = index % bundles, block = index / bundles % blocks;
          const int64_t panel = index / bundles / blocks;
          const int64_t channels = channels_of(block);
          const int64_t last = std::min((panel + 1) * P, conv.out_channels) - 1;
          const bool sees_current =
              pass.has_current() && block * B < pass.current_range(last).second;
          const int64_t first_tap = bundle * taps_together;
          const int64_t end_tap =
              std::min(first_tap + taps_together, pass.earlier() + sees_current);
          const int64_t pairs = (end_tap - first_tap) * channels;
          int64_t offsets[taps_together * B];
          for (int64_t slot = 0; slot < count; ++slot) {
            const Window window = windows[start + slot], seen = pass.seen_from(window);
            const S* x =
                x_packed.get() + slot * x_size + block * seen.pixels() * B +
                ((window.row - seen.row) * seen.columns() + window.column - seen.column) * B;
            const S* y = y_at(slot, window, panel);
            for (int64_t k = 0; k < pairs; ++k) {
              const ConvTap& live = pass.taps[first_tap + k / channels];
              offsets[k] =
                  (live.row_offset * seen.columns() + live.column_offset) * B + k % channels;
            }
            for_each_patch(window, [&](int64_t r, int64_t rows, int64_t c, int64_t columns) {
              for (int64_t k = 0; k < pairs; k += tile) {
                correlate_tile<S, tile>(x + (r * seen.columns() + c) * B, offsets + k,
                                        int(std::min<int64_t>(pairs - k, tile)),
                                        y + (r * window.columns() + c) * B, y_step(window), rows,
                                        columns, seen.columns() * B, window.columns() * B,
                                        sums_of(panel, block, first_tap * channels + k));
              }
            });
          }
        }
      });

      if (conv.bias.data) {
        parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
          for (int64_t panel = begin; panel < end; ++panel) {
            V* const total = reinterpret_cast<V*>(bias_sums.get() + panel * P);
            for (int64_t slot = 0; slot < count; ++slot) {
              const Window window = windows[start + slot];
              const S* y = y_at(slot, window, panel);
              for (int64_t r = 0; r < window.rows(); ++r) {
                V first = splat<V>(0), second = splat<V>(0);
                for (int64_t c = 0; c < window.columns(); ++c, y += B) {
                  first += load<V>(y);
                  second += load<V>(y + y_step(window));
                }
                total[0] += first;
                total[1] += second;
              }
            }
          }
        });
      }
    }

    with_storage<S>(conv.weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      parallel_for(conv.out_channels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t out = begin; out < end; ++out) {
          const int64_t row = group * conv.out_channels + out;
          for (int64_t in = 0; in < conv.in_channels; ++in) {
            for (int64_t r = 0; r < conv.support.kernel_height; ++r) {
              for (int64_t c = 0; c < args.weight_columns; ++c) {
                const int64_t t = r * conv.support.kernel_width + c;
                const bool live = t < pass.earlier() || (t == pass.earlier() && t < taps &&
                                                         in < pass.current_range(out).second);
                const int64_t pair = t * channels_of(in / B) + in % B;
                const S value = live ? sums_of(out / P, in / B, pair)[out % P] : S(0);
                store(at<T>(conv.weight, row, in, r, c), value);
              }
            }
          }
          if (conv.bias.data) {
            store(at<T>(conv.bias, 0, row, 0, 0), bias_sums.get()[out]);
          }
        }
      });
    });
  }
}

template <class Body>
void in_compute_type(DType dtype, const Body& body) {
  dtype == DType::float64 ? body(double()) : body(float());
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(masked_conv2d_pack, MaskedConv2dPack) {
  in_compute_type(args.forward.weight.dtype, [&](auto zero) {
    pack_weights(Pass(args.forward, args.for_grad_input),
                 static_cast<decltype(zero)*>(args.packed));
  });
}

GMFAST_DEFINE_CPU_KERNEL(masked_conv2d, MaskedConv2d) {
  in_compute_type(args.x.dtype, [&](auto zero) {
    run(Pass(args, false), static_cast<const decltype(zero)*>(args.packed));
  });
}

GMFAST_DEFINE_CPU_KERNEL(masked_conv2d_grad_input, MaskedConv2dGradInput) {
  in_compute_type(args.forward.x.dtype, [&](auto zero) {
    run(Pass(args.forward, true), static_cast<const decltype(zero)*>(args.forward.packed));
  });
}

GMFAST_DEFINE_CPU_KERNEL(masked_conv2d_grad_weight, MaskedConv2dGradWeight) {
  in_compute_type(args.forward.x.dtype, [&](auto zero) { grad_weight<decltype(zero)>(args); });
}

}  // namespace gmfast
