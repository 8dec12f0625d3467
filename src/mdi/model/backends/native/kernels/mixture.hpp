// A mixture of experts: each row passes the MLPs that its router chooses, and their results are added.
//
// A *turn* is a row at one of its experts. Turns are sorted by expert, so that an expert's weights are read once for
// all of its rows; within an expert they have the order of the rows. E experts, K of them for each row.
#pragma once

#include <vector>

#include "mlp.hpp"
#include "router.hpp"

namespace mdi {

// The experts of one block.
struct Experts {
  Linear router;
  const float *correction;  // of the scores by which experts are chosen from groups
  const Mlp *mlps;          // null: the block has none
};

class Mixture {
 public:
  Mixture(const Routing &routing, Activation activation, int n_embd) : routing_(routing), activation_(activation), n_embd_(n_embd) {}

  // Memory for messages of up to `n_rows`; `n_hidden` is the size of the widest expert.
  void reserve(int n_rows, int n_hidden, int n_threads) {
    const int64_t n_turns = static_cast<int64_t>(n_rows) * routing_.n_chosen;
    const int size = padded(n_embd_), widest = std::max(n_embd_, n_hidden), n_scores = padded(routing_.n_experts);
    hidden_size_ = padded(n_hidden);
    memory_.renew(Memory::bytes<float>(static_cast<int64_t>(n_rows) * n_scores) + row_bytes(n_turns, widest) +
                  2 * Memory::bytes<float>(n_turns * hidden_size_) + Memory::bytes<float>(n_turns * size) +
                  n_threads * RouterMemory::kParts * Memory::bytes<float>(n_scores));
    logits_ = memory_.take<float>(static_cast<int64_t>(n_rows) * n_scores);
    rows_ = take_rows(memory_, n_turns, widest);
    gate_ = memory_.take<float>(n_turns * hidden_size_);
    value_ = memory_.take<float>(n_turns * hidden_size_);
    results_ = memory_.take<float>(n_turns * size);
    router_.resize(n_threads);
    for (RouterMemory &own : router_)
      for (float **part : {&own.scores, &own.corrected, &own.eligible, &own.groups}) *part = memory_.take<float>(n_scores);
    chosen_.resize(n_turns);
    turns_.resize(n_turns);
    turn_of_.resize(n_turns);
    first_.resize(routing_.n_experts + 1);
    busy_.reserve(routing_.n_experts);
  }

  // Chooses the experts of each row. `rows` are laid out for the router.
  void route(Pool &pool, const Experts &experts, const Rows &rows) {
    const int n_scores = padded(routing_.n_experts);
    multiply(pool, experts.router, rows, {logits_, n_scores});
    pool.run(rows.n, [&](int r, int thread) {
      choose(routing_, logits_ + static_cast<int64_t>(r) * n_scores, experts.correction, router_[thread], chosen(r));
    });
    sort_turns(rows.n);
  }

  // Rows `x` (N, padded C) that have been routed -> `y`, to which the result is added if `adds`.
  void run(Pool &pool, const Experts &experts, int n_rows, const float *x, float *y, bool adds) {
    const int size = padded(n_embd_);
    pool.run(n_rows * routing_.n_chosen, [&](int i, int) {
      const Turn &turn = turns_[i];
      const Rows rows = rows_of(turn.expert, n_embd_);
      put_row(rows, i - first_[turn.expert], x + static_cast<int64_t>(turn.row) * size, experts.mlps[turn.expert]);
    });
    run_experts(pool, experts);
    pool.run(n_rows, [&](int r, int) { add_results(r, y + static_cast<int64_t>(r) * size, adds); });
  }

 private:
  struct Turn {
    int32_t row, expert;
  };

  Choice *chosen(int r) { return chosen_.data() + static_cast<int64_t>(r) * routing_.n_chosen; }
  int n_turns_of(int expert) const { return first_[expert + 1] - first_[expert]; }
  float *gate(int turn) const { return gate_ + static_cast<int64_t>(turn) * hidden_size_; }
  float *value(int turn) const { return value_ + static_cast<int64_t>(turn) * hidden_size_; }
  float *result(int turn) const { return results_ + static_cast<int64_t>(turn) * padded(n_embd_); }
  // Where the rows of an expert lie, those of all experts before them.
  Rows rows_of(int expert, int n_inputs) const { return rows_.part(first_[expert], n_turns_of(expert), padded(n_inputs) / kBlock); }

  // Finds out which turns there are, by counting those of each expert.
  void sort_turns(int n_rows) {
    const int n_turns = n_rows * routing_.n_chosen;
    std::fill(first_.begin(), first_.end(), 0);
    for (int i = 0; i < n_turns; i++) first_[chosen_[i].expert + 1]++;
    busy_.clear();
    for (int e = 0; e < routing_.n_experts; e++) {
      if (first_[e + 1] > 0) busy_.push_back(e);
      first_[e + 1] += first_[e];
    }
    // `first_[e]` is where the next turn of `e` goes, until all have their place: then it is where those of e + 1 begin.
    for (int i = 0; i < n_turns; i++) {
      const int expert = chosen_[i].expert, turn = first_[expert]++;
      turns_[turn] = {i / routing_.n_chosen, expert};
      turn_of_[i] = turn;
    }
    std::copy_backward(first_.begin(), first_.end() - 1, first_.end());
    first_[0] = 0;
  }

  void run_experts(Pool &pool, const Experts &experts) {
    const int n_turns = first_[routing_.n_experts];
    each_share(pool, experts, [&](const Mlp &mlp, int expert, const Share &share) {
      const Rows rows = rows_of(expert, n_embd_);
      share.multiply(mlp.fc_1, rows, {gate(first_[expert]), hidden_size_});
      if (mlp.gated()) share.multiply(mlp.fc_2, rows, {value(first_[expert]), hidden_size_});
    });
    pool.run(n_turns, [&](int i, int) {
      const int expert = turns_[i].expert;
      const Mlp &mlp = experts.mlps[expert];
      activate(mlp, activation_, gate(i), value(i));
      put_row(rows_of(expert, mlp.proj.inputs), i - first_[expert], gate(i), mlp.proj);
    });
    each_share(pool, experts, [&](const Mlp &mlp, int expert, const Share &share) {
      share.multiply(mlp.proj, rows_of(expert, mlp.proj.inputs), {result(first_[expert]), padded(n_embd_)});
    });
  }

  // One of `n` parts of an expert's outputs.
  struct Share {
    int index, n;

    void multiply(const Linear &linear, const Rows &rows, const Target &to) const {
      mdi::multiply(linear, linear.groups() * index / n, linear.groups() * (index + 1) / n, rows, to);
    }
  };
  template <class F> void each_share(Pool &pool, const Experts &experts, const F &f) {
    const int n_busy = static_cast<int>(busy_.size());
    const int n_shares = pool.n_threads() == 1 ? 1 : (pool.n_threads() * kTasksPerThread + n_busy - 1) / n_busy;
    pool.run(n_busy * n_shares, [&](int i, int) {
      const int expert = busy_[i / n_shares];
      f(experts.mlps[expert], expert, {i % n_shares, n_shares});
    });
  }

  // In the order of experts, so that the sum does not depend on which other rows they had.
  void add_results(int r, float *y, bool adds) {
    const Choice *own = chosen(r);
    const int32_t *turns = turn_of_.data() + static_cast<int64_t>(r) * routing_.n_chosen;
    for (int i = 0; i < padded(n_embd_); i += kLanes) {
      Floats sum = splat(0.0f);
      for (int j = 0; j < routing_.n_chosen; j++) sum = sum + splat(own[j].weight) * load(result(turns[j]) + i);
      store(y + i, adds ? sum + load(y + i) : sum);
    }
  }

  const Routing routing_;
  const Activation activation_;
  const int n_embd_;
  int hidden_size_ = 0;
  Memory memory_;
  float *logits_, *gate_, *value_, *results_;
  Rows rows_;
  std::vector<RouterMemory> router_;  // of each thread

  // Of the present message.
  std::vector<Choice> chosen_;    // (N, K)
  std::vector<int32_t> turn_of_;  // (N, K)
  std::vector<Turn> turns_;       // sorted by expert
  std::vector<int32_t> first_;    // [E + 1]: the first turn of each expert
  std::vector<int32_t> busy_;     // experts that have turns
};

}  // namespace mdi
