// Keys and values in slots.
//
// D head size, G kv heads. A slot holds, for each kv head, keys in blocks of 16 positions, [context / 16][D][16], so that
// positions are lanes when scores are summed over D, and values [context][D'], D' a multiple of 16, so that
// elements are lanes when values are summed over positions.
//
// Numbers of 8 bits have a scale for each 32 elements of a key or value: value = integer * scale. Behind the keys of a block
// lie scales [D / 32][16], behind each value its own [D / 32], D / 32 rounded up.
#pragma once

#include <algorithm>

#include "prefetch.hpp"
#include "rows.hpp"

namespace mdi {

inline int lane_multiple(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Bytes of the keys of 16 positions, and of one value, of one kv head.
template <class T> struct CacheSizes {
  static constexpr bool kScaled = sizeof(T) == 1;
  int head_size;

  int scales() const { return kScaled ? padded(head_size) / kBlock : 0; }
  int scale_bytes() const { return scales() * sizeof(float); }  // of a key, and of a value
  int64_t key_block() const { return static_cast<int64_t>(kLanes) * (head_size * sizeof(T) + scale_bytes()); }
  int64_t value() const { return lane_multiple(head_size) * sizeof(T) + scale_bytes(); }
};

// Keys of one slot and kv head, from some block of 16 positions on.
template <class T> struct Keys {
  uint8_t *memory;
  CacheSizes<T> sizes;

  Keys from(int block) const { return {memory + block * sizes.key_block(), sizes}; }
  T *at(int block, int d) const { return reinterpret_cast<T *>(memory + block * sizes.key_block()) + static_cast<int64_t>(d) * kLanes; }
  float *scales(int block) const { return reinterpret_cast<float *>(at(block, sizes.head_size)); }

  Region region(int n_blocks) const { return {memory, n_blocks * sizes.key_block()}; }

  INLINE Floats load(int block, int d) const {
    if constexpr (CacheSizes<T>::kScaled) return mdi::load(at(block, d)) * mdi::load(scales(block) + d / kBlock * kLanes);
    else return mdi::load(at(block, d));
  }
};

// Values of one slot and kv head, from some position on.
template <class T> struct Values {
  uint8_t *memory;
  CacheSizes<T> sizes;

  Values from(int position) const { return {memory + position * sizes.value(), sizes}; }
  T *at(int position, int d) const { return reinterpret_cast<T *>(memory + position * sizes.value()) + d; }
  float *scales(int position) const { return reinterpret_cast<float *>(at(position, lane_multiple(sizes.head_size))); }
  Region region(int n_positions) const { return {memory, n_positions * sizes.value()}; }

  INLINE Floats load(int position, int d) const {
    if constexpr (CacheSizes<T>::kScaled) return mdi::load(at(position, d)) * splat(scales(position)[d / kBlock]);
    else return mdi::load(at(position, d));
  }
};

// Keys and values of one layer. `T` is what they are stored as: float, Half, or int8_t.
template <class T> struct Cache {
  uint8_t *keys, *values;
  int n_heads, head_size, context;  // context: a multiple of 16

  CacheSizes<T> sizes() const { return {head_size}; }
  int value_size() const { return lane_multiple(head_size); }
  Keys<T> keys_of(int slot, int head) const { return {keys + blocks_before(slot, head) * sizes().key_block(), sizes()}; }
  Values<T> values_of(int slot, int head) const {
    return {values + blocks_before(slot, head) * kLanes * sizes().value(), sizes()};
  }

  void put(int slot, int head, int position, const float *key, const float *value) const {
    const Keys<T> to_keys = keys_of(slot, head).from(position / kLanes);
    const Values<T> to_values = values_of(slot, head).from(position);
    for (int d = 0; d < head_size; d += kBlock) {
      const int n = std::min(kBlock, head_size - d);
      T stored[kBlock];
      const float key_scale = convert(key + d, n, stored);
      for (int i = 0; i < n; i++) to_keys.at(0, d + i)[position % kLanes] = stored[i];
      const float value_scale = convert(value + d, n, stored);
      for (int i = 0; i < n; i += kLanes) memcpy(to_values.at(0, d + i), stored + i, kLanes * sizeof(T));
      if constexpr (CacheSizes<T>::kScaled) {
        to_keys.scales(0)[d / kBlock * kLanes + position % kLanes] = key_scale;
        to_values.scales(0)[d / kBlock] = value_scale;
      }
    }
  }
  // The first `n` positions of one slot, to another.
  void copy(int source, int target, int n) const {
    for (int head = 0; head < n_heads; head++) {
      memcpy(keys_of(target, head).memory, keys_of(source, head).memory, lane_multiple(n) / kLanes * sizes().key_block());
      memcpy(values_of(target, head).memory, values_of(source, head).memory, n * sizes().value());
    }
  }

 private:
  int64_t blocks_before(int slot, int head) const { return (static_cast<int64_t>(slot) * n_heads + head) * (context / kLanes); }

  // The first `n` numbers, and zeros after them, as they are stored. Returns their scale.
  static float convert(const float *x, int n, T *stored) {
    const int n_low = std::min(n, kLanes);
    const Floats low = load_first(x, n_low), high = load_first(x + n_low, n - n_low);
    if constexpr (CacheSizes<T>::kScaled) {
      const Rounded rounded = rounded_block(low, high);
      store(stored, rounded.low);
      store(stored + kLanes, rounded.high);
      return rounded.scale;
    } else {
      store(stored, low);
      store(stored + kLanes, high);
      return 1;
    }
  }
};

}  // namespace mdi
