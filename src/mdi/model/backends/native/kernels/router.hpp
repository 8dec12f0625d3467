// Which experts of a mixture compute a row, and with which weights: litgpt's LLaMAMoE and GroupedTopkRouter.
#pragma once

#include <algorithm>

#include "norms.hpp"

namespace mdi {

struct Routing {
  int32_t n_experts, n_chosen;  // of a block, and of a row
  // The experts are in equal groups, and chosen from `n_chosen_groups` of them. A group's score is the sum of its
  // `n_group_scores` best. 0 groups: weights are the softmax of the chosen scores.
  int32_t n_groups, n_chosen_groups, n_group_scores;
  int32_t normalizes;  // weights of experts from groups to a sum of one
  float scale;         // of all weights

  int group_size() const { return n_experts / n_groups; }
};

struct Choice {
  int32_t expert;
  float weight;
};

// Has the order of the scores. Of equal ones the first is the largest; NaN is larger than all numbers, as for torch.
inline int64_t rank_of(float score, int index) {
  const int32_t bits = score != score ? INT32_MAX : static_cast<int32_t>(bits_of(score));
  const int32_t ordered = bits < 0 ? bits ^ INT32_MAX : bits;
  return ordered * (int64_t{1} << 32) + (INT32_MAX - index);
}

// Calls `take(j, index)` for the `k` largest of `n` scores, from the largest on.
template <class F> void for_largest(const float *scores, int n, int k, F take) {
  int64_t last = INT64_MAX;
  for (int j = 0; j < k; j++) {
    int64_t largest = INT64_MIN;
    int index = 0;
    for (int i = 0; i < n; i++) {
      const int64_t rank = rank_of(scores[i], i);
      if (rank < last && rank > largest) largest = rank, index = i;
    }
    take(j, index);
    last = largest;
  }
}

inline void choose_largest(const Routing &routing, const float *logits, Choice *chosen) {
  float top = 0, total = 0;
  for_largest(logits, routing.n_experts, routing.n_chosen, [&](int j, int expert) {
    if (j == 0) top = logits[expert];
    float weight[kLanes];
    store(weight, exp(splat(logits[expert] - top)));
    total += weight[0];
    chosen[j] = {expert, weight[0]};
  });
  for (int j = 0; j < routing.n_chosen; j++) chosen[j].weight = chosen[j].weight / total * routing.scale;
}

// What a row's choice from groups lies in meanwhile.
struct RouterMemory {
  float *scores, *corrected, *eligible;  // [n_experts]
  float *groups;                         // [n_groups]

  static constexpr int kParts = 4;
};

inline void choose_from_groups(const Routing &routing, const float *logits, const float *correction,
                               const RouterMemory &memory, Choice *chosen) {
  const int size = routing.group_size();
  for_lanes(routing.n_experts, [&](int i, int n) {
    const Floats score = splat(1.0f) / (splat(1.0f) + exp(-load_first(logits + i, n)));
    store_first(memory.scores + i, score, n);
    store_first(memory.corrected + i, score + load_first(correction + i, n), n);
    store_first(memory.eligible + i, splat(0.0f), n);  // as litgpt: an expert of another group may come before negative scores
  });
  for (int g = 0; g < routing.n_groups; g++) {
    const float *group = memory.corrected + g * size;
    memory.groups[g] = 0;
    for_largest(group, size, routing.n_group_scores, [&](int, int i) { memory.groups[g] += group[i]; });
  }
  for_largest(memory.groups, routing.n_groups, routing.n_chosen_groups, [&](int, int g) {
    memcpy(memory.eligible + g * size, memory.corrected + g * size, size * sizeof(float));
  });
  float total = 1e-20f;
  for_largest(memory.eligible, routing.n_experts, routing.n_chosen, [&](int j, int expert) {
    chosen[j] = {expert, memory.scores[expert]};
    total += chosen[j].weight;
  });
  for (int j = 0; j < routing.n_chosen; j++)
    chosen[j].weight = (routing.normalizes ? chosen[j].weight / total : chosen[j].weight) * routing.scale;
}

// The experts of one row in the order of their numbers.
inline void choose(const Routing &routing, const float *logits, const float *correction, const RouterMemory &memory, Choice *chosen) {
  if (routing.n_groups == 0) choose_largest(routing, logits, chosen);
  else choose_from_groups(routing, logits, correction, memory, chosen);
  std::sort(chosen, chosen + routing.n_chosen, [](const Choice &a, const Choice &b) { return a.expert < b.expert; });
}

}  // namespace mdi
