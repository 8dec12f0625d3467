// Packed weights of a linear layer: tiles of 16 outputs x 32 inputs, one after the other for each 16 outputs.
//
// In a tile of floats the 16 outputs of one input are neighbours. A tile of integers begins with what they mean:
//
//   int8   scale[16] half                   q[512]: value = q * scale, GGUF's Q8_0
//   int4   scale[16], minimum[16] half      q[512] of 4 bits: value = q * scale + minimum, GGUF's Q4_1
//
// Outputs and inputs are filled up to multiples of 32 with zeros.
#pragma once

#include "dots.hpp"

namespace mdi {

enum class Type : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kInt4 };

constexpr int kGroup = kLanes;  // outputs of a tile

inline int padded(int n) { return (n + kBlock - 1) / kBlock * kBlock; }

template <class Number> struct FloatTile {
  using Weight = Number;
  static constexpr bool kQuantized = false;
  static constexpr int kBytes = kGroup * kBlock * sizeof(Number);
};
struct Int8Tile {
  using Dot = Dot8;
  static constexpr bool kQuantized = true;
  static constexpr int kHead = kGroup * sizeof(Half), kBytes = kHead + kGroup * kBlock;
};
struct Int4Tile {
  using Dot = Dot4;
  static constexpr bool kQuantized = true;
  static constexpr int kHead = 2 * kGroup * sizeof(Half), kBytes = kHead + kGroup * kBlock / 2;
};

// Calls `f` with a value of the tile's type.
template <class F> INLINE auto with_tile(Type type, F f) {
  switch (type) {
    case Type::kFloat32: return f(FloatTile<float>{});
    case Type::kBFloat16: return f(FloatTile<BFloat16>{});
    case Type::kFloat16: return f(FloatTile<Half>{});
    case Type::kInt8: return f(Int8Tile{});
    default: return f(Int4Tile{});
  }
}

// A linear layer: `bias` has as many elements as there are padded outputs, or is null.
struct Linear {
  const uint8_t *tiles;
  const float *bias;
  Type type;
  int32_t outputs, inputs;

  int groups() const { return padded(outputs) / kGroup; }
  int blocks() const { return padded(inputs) / kBlock; }
  bool quantized() const { return type == Type::kInt8 || type == Type::kInt4; }
};

inline int64_t packed_bytes(Type type, int outputs, int inputs) {
  const int64_t tile = with_tile(type, [](auto t) { return decltype(t)::kBytes; });
  return tile * (padded(outputs) / kGroup) * (padded(inputs) / kBlock);
}

// ---- packing, as the formats lie in chunk files: O outputs, I inputs

// One output of one tile.
template <class Number>
void pack_output(FloatTile<Number>, uint8_t *tile, int output, const Number *row, int n_inputs) {
  for (int k = 0; k < n_inputs; k++) reinterpret_cast<Number *>(tile)[k * kGroup + output] = row[k];
}
inline void pack_output(Int8Tile, uint8_t *tile, int output, const int8_t *row, int n_inputs, const Half *scale) {
  reinterpret_cast<Half *>(tile)[output] = *scale;
  for (int k = 0; k < kBlock; k++) {
    const int at = k / Dot8::kInputs * Dot8::kStepBytes + Dot8::position(output, k % Dot8::kInputs);
    tile[Int8Tile::kHead + at] = static_cast<uint8_t>((k < n_inputs ? row[k] : 0) + Dot8::kOffset);
  }
}
inline void pack_output(Int4Tile, uint8_t *tile, int output, const uint8_t *row, int n_inputs, const Half *pair) {
  reinterpret_cast<Half *>(tile)[output] = pair[0];
  reinterpret_cast<Half *>(tile)[kGroup + output] = pair[1];
  for (int k = 0; k < n_inputs; k++) {
    const int q = k % 2 ? row[k / 2] >> 4 : row[k / 2] & 15, input = k % Dot4::kInputs;
    uint8_t &byte = tile[Int4Tile::kHead + k / Dot4::kInputs * Dot4::kStepBytes + Dot4::position(output, input)];
    byte = static_cast<uint8_t>(byte | (Dot4::is_high(output, input) ? q << 4 : q));
  }
}

// `data` and `scales` as in mdi.model.quant; `scales` is null for floats. `out` holds zeros.
inline void pack(Type type, const void *data, const Half *scales, int outputs, int inputs, uint8_t *out) {
  with_tile(type, [&](auto t) {
    using Tile = decltype(t);
    const int n_blocks = padded(inputs) / kBlock;
    for (int o = 0; o < padded(outputs); o++)
      for (int b = 0; b < n_blocks; b++) {
        uint8_t *tile = out + (static_cast<int64_t>(o / kGroup) * n_blocks + b) * Tile::kBytes;
        const int n_inputs = o < outputs ? (inputs - b * kBlock < kBlock ? inputs - b * kBlock : kBlock) : 0;
        const int64_t first = static_cast<int64_t>(o) * inputs + b * kBlock, block = static_cast<int64_t>(o) * n_blocks + b;
        if constexpr (std::is_same_v<Tile, Int8Tile>) {
          static constexpr Half zero{};
          pack_output(t, tile, o % kGroup, static_cast<const int8_t *>(data) + first, n_inputs, n_inputs ? scales + block : &zero);
        } else if constexpr (std::is_same_v<Tile, Int4Tile>) {
          if (n_inputs) pack_output(t, tile, o % kGroup, static_cast<const uint8_t *>(data) + first / 2, n_inputs, scales + 2 * block);
        } else if (n_inputs) {
          pack_output(t, tile, o % kGroup, static_cast<const typename Tile::Weight *>(data) + first, n_inputs);
        }
      }
  });
}

// The weights of one output as floats (inputs): how a packed embedding is read. Only for floats.
inline void unpack_output(const Linear &linear, int output, float *row) {
  with_tile(linear.type, [&](auto t) {
    using Tile = decltype(t);
    if constexpr (!Tile::kQuantized) {
      const auto *group = reinterpret_cast<const typename Tile::Weight *>(
          linear.tiles + static_cast<int64_t>(output / kGroup) * linear.blocks() * Tile::kBytes);
      for (int k = 0; k < linear.inputs; k++) row[k] = float_of(group[static_cast<int64_t>(k) * kGroup + output % kGroup]);
    }
  });
}

}  // namespace mdi
