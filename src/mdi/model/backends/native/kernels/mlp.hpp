// The layers between attention and the next block, of one block or one expert.
#pragma once

#include "functions.hpp"
#include "workspace.hpp"

namespace mdi {

struct Mlp {
  Linear fc_1, fc_2, proj;  // without fc_2 the MLP is not gated; without any there is none

  bool exists() const { return proj.tiles != nullptr; }
  bool gated() const { return fc_2.tiles != nullptr; }
};

// Lays out row `r` as the products with `fc_1` and `fc_2` read it.
inline void put_row(const Rows &rows, int r, const float *x, const Mlp &mlp) {
  put_row(rows, r, x, mlp.fc_1);
  if (mlp.gated() && mlp.fc_2.quantized() != mlp.fc_1.quantized()) put_row(rows, r, x, mlp.fc_2);
}

// What `fc_1` made of a row, `gate`, becomes what `proj` reads. `value` is that of `fc_2`.
inline void activate(const Mlp &mlp, Activation activation, float *gate, const float *value) {
  for (int i = 0; i < padded(mlp.fc_1.outputs); i += kLanes) {
    const Floats y = activated(activation, load(gate + i));
    store(gate + i, mlp.gated() ? y * load(value + i) : y);
  }
}

}  // namespace mdi
