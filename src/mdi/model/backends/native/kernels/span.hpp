// A span of decoder blocks: the rows of a message through all of them.
//
// C embedding size, H query heads, G kv heads, D head size, F size of the widest MLP. Rows in between have padded sizes;
// what is beyond the real size is zero.
#pragma once

#include <memory>
#include <vector>

#include "attention.hpp"
#include "mixture.hpp"

namespace mdi {

// `n` consecutive rows of a message, for positions from `start` on of `slot`.
struct Segment {
  int32_t slot, start, n;
};

// What the blocks of a span have in common.
struct Shape {
  int32_t n_embd, n_head, n_groups, head_size, n_rotary;
  int32_t parallel_residual;  // the MLP reads what attention reads
  int32_t shared_norm;        // and the same normalization of it
  int32_t rotates_neighbours;
  int32_t norms_all_heads;  // norm_q and norm_k run over all heads at once, or over each
  Type cache_type;          // of keys and values: float32, float16 or int8
  Activation activation;
  Scaling scaling;
  Routing routing;  // where blocks have experts
};

struct Block {
  Norm norm_1, norm_2, post_attention_norm, post_mlp_norm, norm_q, norm_k;
  Linear qkv, attention_proj;
  Mlp mlp;  // for every row; beside experts it is the one that they share, and need not be there
  Experts experts;
  int32_t window;  // positions that a row sees at most; 0: all
  int32_t rotary_table;
  void *keys, *values;  // of all slots

  bool is_mixture() const { return experts.mlps != nullptr; }
};

class Span {
 public:
  Span(const Shape &shape, const Block *blocks, int n_blocks)
      : shape_(shape), blocks_(blocks, blocks + n_blocks), mixture_(shape.routing, shape.activation, shape.n_embd) {
    for (const Block &block : blocks_) {
      n_hidden_ = std::max(n_hidden_, block.mlp.fc_1.outputs);
      for (int e = 0; block.is_mixture() && e < shape.routing.n_experts; e++)
        n_expert_hidden_ = std::max(n_expert_hidden_, block.experts.mlps[e].fc_1.outputs);
    }
  }

  // `context` is a multiple of 16. The tables are (context, rotary elements), one for each kind of layer.
  void set_slots(int n_threads, int context, void *const *keys, void *const *values, const float *const *cos,
                 const float *const *sin) {
    for (size_t i = 0; i < blocks_.size(); i++) blocks_[i].keys = keys[i], blocks_[i].values = values[i];
    for (int i = 0; i < 2; i++) cos_[i] = cos[i], sin_[i] = sin[i];
    context_ = context;
    if (!pool_ || pool_->n_threads() != n_threads) pool_ = std::make_unique<Pool>(n_threads);
    capacity_ = 0;
  }

  void fork(int source, int target, int n) {
    for (const Block &block : blocks_) with_cache(block, [&](const auto &cache) { cache.copy(source, target, n); });
  }

  // Rows (N, C) -> `y` (N, C).
  void forward(const float *x, float *y, const Segment *segments, int n_segments) {
    place(segments, n_segments);
    const int n = static_cast<int>(places_.size()), size = shape_.n_embd;
    if (n > capacity_) reserve(n);
    rows_.n = n;
    for (int r = 0; r < n; r++) memcpy(hidden(r), x + static_cast<int64_t>(r) * size, size * sizeof(float));
    const Norm none{};
    const Norm *post = nullptr;  // of what is to be added to the rows
    for (const Block &block : blocks_) {
      each_row([&](int r) {
        if (post) add_branch(r, *post);
        put_row(rows_, r, normed(r, block.norm_1), block.qkv);
      });
      attend(block);
      each_row([&](int r) { enter_mlp(r, block); });
      run_mlp(block);
      post = block.post_mlp_norm.kind == Norm::Kind::kNone ? &none : &block.post_mlp_norm;
    }
    each_row([&](int r) {
      if (post) add_branch(r, *post);
      memcpy(y + static_cast<int64_t>(r) * size, hidden(r), size * sizeof(float));
    });
  }

 private:
  struct Place {
    int slot, position;
  };
  // Rows of one slot whose attention is one task.
  struct Piece {
    int first_row, n;
  };
  static constexpr int kPieceRows = 16;

  int heads_size() const { return shape_.n_head * shape_.head_size; }
  int qkv_size() const { return (shape_.n_head + 2 * shape_.n_groups) * shape_.head_size; }
  float *hidden(int r) const { return hidden_ + static_cast<int64_t>(r) * padded(shape_.n_embd); }
  float *normed(int r) const { return normed_ + static_cast<int64_t>(r) * padded(shape_.n_embd); }
  float *branch(int r) const { return branch_ + static_cast<int64_t>(r) * padded(shape_.n_embd); }
  float *qkv(int r) const { return qkv_ + static_cast<int64_t>(r) * padded(qkv_size()); }
  float *heads(int r) const { return heads_ + static_cast<int64_t>(r) * padded(heads_size()); }
  float *gate(int r) const { return gate_ + static_cast<int64_t>(r) * padded(n_hidden_); }
  float *value(int r) const { return value_ + static_cast<int64_t>(r) * padded(n_hidden_); }

  template <class F> void each_row(const F &f) {
    pool_->run(rows_.n, [&](int r, int) { f(r); });
  }
  template <class F> void with_cache(const Block &block, F f) const {
    switch (shape_.cache_type) {
      case Type::kFloat32: return f(cache_of<float>(block));
      case Type::kInt8: return f(cache_of<int8_t>(block));
      default: return f(cache_of<Half>(block));
    }
  }
  template <class T> Cache<T> cache_of(const Block &block) const {
    return {static_cast<uint8_t *>(block.keys), static_cast<uint8_t *>(block.values), shape_.n_groups, shape_.head_size, context_};
  }

  void place(const Segment *segments, int n_segments) {
    places_.clear();
    pieces_.clear();
    for (int i = 0; i < n_segments; i++)
      for (int r = 0; r < segments[i].n; r++) {
        const int row = static_cast<int>(places_.size());
        if (r % kPieceRows == 0) pieces_.push_back({row, std::min(kPieceRows, segments[i].n - r)});
        places_.push_back({segments[i].slot, segments[i].start + r});
      }
  }

  void reserve(int n_rows) {
    const int64_t n = n_rows;
    const int widest = std::max({shape_.n_embd, heads_size(), n_hidden_});
    const int sizes[] = {shape_.n_embd, shape_.n_embd, shape_.n_embd, qkv_size(), heads_size(), n_hidden_, n_hidden_};
    size_t n_bytes = row_bytes(n, widest) + pool_->n_threads() * thread_bytes();
    for (int size : sizes) n_bytes += Memory::bytes<float>(n * padded(size));
    memory_.renew(n_bytes);
    float **const buffers[] = {&hidden_, &normed_, &branch_, &qkv_, &heads_, &gate_, &value_};
    for (int i = 0; i < 7; i++) *buffers[i] = memory_.take<float>(n * padded(sizes[i]));
    rows_ = take_rows(memory_, n, widest);
    attention_.resize(pool_->n_threads());
    for (AttentionMemory &own : attention_) {
      own.queries = memory_.take<float>(kQueries * shape_.head_size);
      own.scores = memory_.take<float>(static_cast<int64_t>(kQueries) * context_);
      own.results = memory_.take<float>(kQueries * lane_multiple(shape_.head_size));
    }
    if (n_expert_hidden_ > 0) mixture_.reserve(n_rows, n_expert_hidden_, pool_->n_threads());
    capacity_ = n_rows;
  }
  size_t thread_bytes() const {
    return Memory::bytes<float>(kQueries * shape_.head_size) + Memory::bytes<float>(static_cast<int64_t>(kQueries) * context_) +
           Memory::bytes<float>(kQueries * lane_multiple(shape_.head_size));
  }

  // The row as a norm leaves it. It stays until the next norm.
  const float *normed(int r, const Norm &norm) {
    float *y = normed(r);
    if (norm.kind == Norm::Kind::kNone) memcpy(y, hidden(r), shape_.n_embd * sizeof(float));
    else normalize(norm, hidden(r), shape_.n_embd, y);
    return y;
  }
  void add_branch(int r, const Norm &post) {
    float *x = hidden(r), *addend = branch(r);
    if (post.kind != Norm::Kind::kNone) normalize(post, addend, shape_.n_embd, addend);
    for (int i = 0; i < padded(shape_.n_embd); i += kLanes) store(x + i, load(addend + i) + load(x + i));
  }

  void attend(const Block &block) {
    multiply(*pool_, block.qkv, rows_, {qkv_, padded(qkv_size())});
    with_cache(block, [&](const auto &cache) {
      each_row([&](int r) { put_keys_and_values(r, block, cache); });
      const int n_groups = shape_.n_groups, n_tasks = static_cast<int>(pieces_.size()) * n_groups;
      pool_->run(n_tasks, [&](int i, int thread) {
        const Piece &piece = pieces_[i / n_groups];
        const Region next = i + 1 < n_tasks ? keys_seen(pieces_[(i + 1) / n_groups], (i + 1) % n_groups, block, cache) : Region{};
        attend_piece(piece, {slot_of(piece), i % n_groups, next}, block, cache, attention_[thread]);
      });
    });
    each_row([&](int r) { put_row(rows_, r, heads(r), block.attention_proj); });
    multiply(*pool_, block.attention_proj, rows_, {branch_, padded(shape_.n_embd)});
  }

  template <class T> void put_keys_and_values(int r, const Block &block, const Cache<T> &cache) {
    const int size = shape_.head_size, n_turned = shape_.n_head + shape_.n_groups;
    const Place &place = places_[r];
    float *q = qkv(r), *k = q + heads_size(), *v = k + shape_.n_groups * size;
    norm_heads(block.norm_q, q, shape_.n_head);
    norm_heads(block.norm_k, k, shape_.n_groups);
    const int64_t row = static_cast<int64_t>(place.position) * shape_.n_rotary;
    const float *cos = cos_[block.rotary_table] + row, *sin = sin_[block.rotary_table] + row;
    float *scratch = heads(r);  // has room for a head, and is not filled yet
    for (int head = 0; head < n_turned; head++)
      rotate(q + head * size, cos, sin, shape_.n_rotary, shape_.rotates_neighbours, scratch);
    for (int head = 0; head < shape_.n_groups; head++)
      cache.put(place.slot, head, place.position, k + head * size, v + head * size);
  }
  void norm_heads(const Norm &norm, float *x, int n_heads) {
    if (norm.kind == Norm::Kind::kNone) return;
    const int size = shape_.norms_all_heads ? n_heads * shape_.head_size : shape_.head_size;
    for (int i = 0; i < n_heads * shape_.head_size; i += size) normalize(norm, x + i, size, x + i);
  }

  int slot_of(const Piece &piece) const { return places_[piece.first_row].slot; }
  Sight sight_of(int r, const Block &block) const {
    const int stop = places_[r].position + 1;
    return {block.window ? std::max(0, stop - block.window) : 0, stop};
  }
  template <class T> Region keys_seen(const Piece &piece, int group, const Block &block, const Cache<T> &cache) const {
    const int last_row = piece.first_row + piece.n - 1;
    const KeyBlocks blocks({sight_of(piece.first_row, block).first, sight_of(last_row, block).stop});
    return cache.keys_of(slot_of(piece), group).from(blocks.begin).region(blocks.n);
  }

  // Query heads that share a kv head, of several rows, are alike: each sees positions of the same slot.
  template <class T>
  void attend_piece(const Piece &piece, const Source &source, const Block &block, const Cache<T> &cache,
                    const AttentionMemory &memory) {
    const int size = shape_.head_size, per_group = shape_.n_head / shape_.n_groups, n_queries = piece.n * per_group;
    for (int first = 0; first < n_queries; first += kQueries) {
      const int n = std::min(kQueries, n_queries - first);
      Sight sights[kQueries];
      for (int j = 0; j < n; j++) {
        const int r = piece.first_row + (first + j) / per_group;
        sights[j] = sight_of(r, block);
        memcpy(memory.queries + j * size, qkv(r) + head_of(first + j, source.head) * size, size * sizeof(float));
      }
      attend_up_to<kQueries>(n, cache, source, sights, shape_.scaling, memory);
      for (int j = 0; j < n; j++) {
        const int r = piece.first_row + (first + j) / per_group;
        memcpy(heads(r) + head_of(first + j, source.head) * size, memory.results + j * cache.value_size(), size * sizeof(float));
      }
    }
  }
  int head_of(int query, int group) const {
    const int per_group = shape_.n_head / shape_.n_groups;
    return group * per_group + query % per_group;
  }

  // Adds what attention has found, and lays out what the MLP and the router read.
  void enter_mlp(int r, const Block &block) {
    if (!shape_.parallel_residual) add_branch(r, block.post_attention_norm);
    const float *x = shape_.parallel_residual && shape_.shared_norm ? normed(r) : normed(r, block.norm_2);
    if (block.mlp.exists()) put_row(rows_, r, x, block.mlp);
    if (block.is_mixture()) put_row(rows_, r, x, block.experts.router);
    if (shape_.parallel_residual) add_branch(r, block.post_attention_norm);
  }

  void run_mlp(const Block &block) {
    const Mlp &mlp = block.mlp;
    if (block.is_mixture()) mixture_.route(*pool_, block.experts, rows_);  // before others use `rows_`
    if (mlp.exists()) {
      const int size = padded(n_hidden_);
      multiply(*pool_, mlp.fc_1, rows_, {gate_, size});
      if (mlp.gated()) multiply(*pool_, mlp.fc_2, rows_, {value_, size});
      each_row([&](int r) {
        activate(mlp, shape_.activation, gate(r), value(r));
        put_row(rows_, r, gate(r), mlp.proj);
      });
      multiply(*pool_, mlp.proj, rows_, {branch_, padded(shape_.n_embd)});
    }
    if (block.is_mixture()) mixture_.run(*pool_, block.experts, rows_.n, normed_, branch_, mlp.exists());
  }

  const Shape shape_;
  std::vector<Block> blocks_;
  int n_hidden_ = 0, n_expert_hidden_ = 0;  // of the widest MLP and the widest expert
  int context_ = 0;
  const float *cos_[2] = {}, *sin_[2] = {};
  std::unique_ptr<Pool> pool_;

  // Of the present message.
  std::vector<Place> places_;
  std::vector<Piece> pieces_;
  int capacity_ = 0;  // rows
  Memory memory_;
  float *hidden_, *normed_, *branch_, *qkv_, *heads_, *gate_, *value_;
  Rows rows_;
  std::vector<AttentionMemory> attention_;
  Mixture mixture_;
};

// What comes after the last block: a norm, and a product with many outputs.
class Head {
 public:
  Head(const Norm &norm, const Linear &linear) : norm_(norm), linear_(linear) {}

  // Rows (N, C) -> `y` (N, padded vocabulary).
  void logits(const float *x, float *y, int n_rows, int n_threads) {
    const int size = linear_.inputs;
    if (!pool_ || pool_->n_threads() != n_threads) pool_ = std::make_unique<Pool>(n_threads);
    if (n_rows > capacity_) {
      memory_.renew(row_bytes(n_rows, size) + Memory::bytes<float>(padded(size)));
      normed_ = memory_.take<float>(padded(size));
      rows_ = take_rows(memory_, n_rows, size);
      capacity_ = n_rows;
    }
    rows_.n = n_rows;
    for (int r = 0; r < n_rows; r++) {
      memcpy(normed_, x + static_cast<int64_t>(r) * size, size * sizeof(float));
      if (norm_.kind != Norm::Kind::kNone) normalize(norm_, normed_, size, normed_);
      put_row(rows_, r, normed_, linear_);
    }
    multiply(*pool_, linear_, rows_, {y, padded(linear_.outputs)});
  }

  void embed(const int32_t *ids, int n, float *y) const {
    for (int i = 0; i < n; i++) unpack_output(linear_, ids[i], y + static_cast<int64_t>(i) * linear_.inputs);
  }

 private:
  const Norm norm_;
  const Linear linear_;
  std::unique_ptr<Pool> pool_;
  int capacity_ = 0;
  Memory memory_;
  float *normed_;
  Rows rows_;
};

}  // namespace mdi
