// Runs small spans with weights of every type, and prints a hash of the bits of their rows: it is the same on every CPU.
// Sizes are such that neither 16 nor 32 divides them.
#include <cstdio>

#include "entry.cpp"

namespace {

struct Random {
  uint32_t state = 1;
  uint32_t bits() { return state = state * 1664525 + 1013904223; }
  float number() { return static_cast<float>(static_cast<int32_t>(bits()) >> 8) * 0x1p-23f; }  // -1 to 1, exactly
  std::vector<float> numbers(size_t n, float scale = 1) {
    std::vector<float> all(n);
    for (float &x : all) x = scale * number();
    return all;
  }
};

// A linear layer of random weights, and the memory behind it.
struct Layer {
  std::vector<uint8_t> tiles;
  std::vector<float> bias;
  Linear linear;

  Layer(Type type, int outputs, int inputs, bool with_bias, Random &random) {
    tiles.resize(packed_bytes(type, outputs, inputs));
    const size_t n = static_cast<size_t>(outputs) * inputs, n_blocks = static_cast<size_t>(outputs) * (padded(inputs) / kBlock);
    std::vector<float> floats = random.numbers(n, 0.3f);
    std::vector<Half> halves(std::max(n, 2 * n_blocks));
    std::vector<BFloat16> bfloats(n);
    std::vector<int8_t> bytes(n);
    const void *data = floats.data();
    if (type == Type::kFloat16) {
      for (size_t i = 0; i < n; i++) halves[i] = half_of(floats[i]);
      data = halves.data();
    } else if (type == Type::kBFloat16) {
      for (size_t i = 0; i < n; i++) bfloats[i] = static_cast<BFloat16>(bits_of(floats[i]) >> 16);
      data = bfloats.data();
    } else if (type != Type::kFloat32) {
      for (size_t i = 0; i < n; i++) bytes[i] = static_cast<int8_t>(random.bits() >> 24 == 0x80 ? 127 : random.bits() >> 24);
      if (type == Type::kInt8) for (int8_t &q : bytes) q = q == -128 ? -127 : q;
      for (Half &scale : halves) scale = half_of(0.003f + 0.002f * random.number());
      data = bytes.data();
    }
    pack(type, data, halves.data(), outputs, inputs, tiles.data());
    if (with_bias) bias = random.numbers(padded(outputs));
    linear = {tiles.data(), with_bias ? bias.data() : nullptr, type, outputs, inputs};
  }
};

uint64_t hash_of(const std::vector<float> &rows, uint64_t hash) {
  for (float x : rows) hash = (hash ^ bits_of(x)) * 1099511628211u;
  return hash;
}

// What blocks have: the least; everything but experts; experts; experts in groups and a shared one behind a dense block;
// keys and values of 8 bits.
enum Kind { kPlain, kRich, kExperts, kGroupedExperts, kInt8Cache };

// The experts of a block, and the memory behind them.
struct Expertise {
  std::vector<Layer> layers;
  std::vector<float> correction;
  std::vector<Mlp> mlps;
  Experts experts;

  Expertise(Type type, const Routing &routing, int n_embd, int n_hidden, Random &random) {
    correction = random.numbers(padded(routing.n_experts), 0.2f);
    layers.reserve(3 * routing.n_experts + 1);
    const auto made = [&](Type kind, int outputs, int inputs, bool with_bias) {
      return layers.emplace_back(kind, outputs, inputs, with_bias, random).linear;
    };
    for (int i = 0; i < routing.n_experts; i++) {
      const Linear fc_1 = made(type, n_hidden, n_embd, false), fc_2 = made(type, n_hidden, n_embd, false);
      mlps.push_back({fc_1, fc_2, made(type, n_embd, n_hidden, true)});
    }
    experts = {made(Type::kFloat32, routing.n_experts, n_embd, false), correction.data(), mlps.data()};
  }
};

uint64_t run(Type type, Kind kind, int n_threads) {
  const bool rich = kind == kRich, grouped = kind == kGroupedExperts;
  constexpr int C = 40, H = 6, G = 2, F = 72, kRotary = 8, kContext = 48, kSlots = 3;
  const int D = kind == kInt8Cache ? 44 : 12;  // 8-bit keys have more than one scale
  Random random;
  const Type cache = kind == kInt8Cache ? Type::kInt8 : type == Type::kFloat32 ? Type::kFloat32 : Type::kFloat16;
  const Routing routing = grouped ? Routing{20, 3, 4, 2, 2, 1, 1.5f} : Routing{7, 2, 0, 0, 0, 0, 1.0f};
  const Shape shape{C, H, G, D, kRotary, rich, 0, rich, 0, cache,
                    rich ? Activation::kGelu : Activation::kSilu, {0.3f, rich ? 5.0f : 0.0f}, routing};
  const std::vector<float> weight = random.numbers(C), bias = random.numbers(C), head_weight = random.numbers(D);
  const Norm norm{rich ? Norm::Kind::kLayer : Norm::Kind::kRms, 1e-5f, weight.data(), rich ? bias.data() : nullptr};
  const Norm none{}, head_norm{rich ? Norm::Kind::kRms : Norm::Kind::kNone, 1e-5f, head_weight.data(), nullptr};
  const Layer qkv(type, (H + 2 * G) * D, C, rich, random), proj(type, C, H * D, rich, random);
  const Layer fc_1(type, F, C, rich, random), fc_2(type, F, C, false, random), mlp_proj(type, C, F, rich, random);
  const Mlp mlp{fc_1.linear, rich ? Linear{} : fc_2.linear, mlp_proj.linear};
  const Block block{norm, norm, rich ? norm : none, none, head_norm, head_norm, qkv.linear, proj.linear, mlp,
                    Experts{}, rich ? 7 : 0, 0, nullptr, nullptr};
  Block blocks[] = {block, block};
  Random own{static_cast<uint32_t>(kind)};
  const Expertise expertise(type, routing, C, 24, own);
  if (kind == kExperts)
    for (Block &one : blocks) one.mlp = Mlp{}, one.experts = expertise.experts;
  if (grouped) blocks[1].experts = expertise.experts;
  Span span(shape, blocks, 2);

  const size_t bytes = static_cast<size_t>(kSlots) * G * kContext * 48 * sizeof(float);
  std::vector<std::vector<uint8_t>> memory(4, std::vector<uint8_t>(bytes));
  void *keys[] = {memory[0].data(), memory[1].data()}, *values[] = {memory[2].data(), memory[3].data()};
  const std::vector<float> cos = random.numbers(kContext * kRotary), sin = random.numbers(kContext * kRotary);
  const float *cosines[] = {cos.data(), cos.data()}, *sines[] = {sin.data(), sin.data()};
  span.set_slots(n_threads, kContext, keys, values, cosines, sines);

  uint64_t hash = 14695981039346656037u;
  const std::vector<std::vector<Segment>> messages = {
      {{0, 0, 1}, {1, 0, 3}, {2, 0, 29}}, {{2, 29, 1}, {0, 1, 20}, {1, 3, 3}}, {{1, 6, 1}, {2, 30, 1}, {0, 21, 1}}, {{2, 31, 17}}};
  for (const std::vector<Segment> &message : messages) {
    int n = 0;
    for (const Segment &segment : message) n += segment.n;
    std::vector<float> x = random.numbers(static_cast<size_t>(n) * C), y(x.size());
    span.forward(x.data(), y.data(), message.data(), static_cast<int>(message.size()));
    hash = hash_of(y, hash);
  }
  span.fork(2, 0, 25);

  Head head(norm, qkv.linear);
  const std::vector<float> x = random.numbers(5 * C);
  std::vector<float> y(5 * padded((H + 2 * G) * D));
  head.logits(x.data(), y.data(), 5, n_threads);
  return hash_of(y, hash);
}

}  // namespace

int main(int argc, char **) {
  const int n_threads = argc > 1 ? 3 : 1;
  for (int type = 0; type <= static_cast<int>(Type::kInt4); type++)
    for (Kind kind : {kPlain, kRich, kExperts, kGroupedExperts, kInt8Cache})
      std::printf("%d %d %016llx\n", type, kind, static_cast<unsigned long long>(run(static_cast<Type>(type), kind, n_threads)));
}
