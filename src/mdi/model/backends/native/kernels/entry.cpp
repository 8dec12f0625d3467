// The functions that Python calls: a plain C interface, which knows neither Python nor torch.
//
// They check nothing but memory: mdi.model.backends.native does. Each returns 0, or 1 where memory ran out.
#include "mapping.hpp"
#include "span.hpp"

#define API extern "C" __attribute__((visibility("default")))

using namespace mdi;

namespace {

template <class F> int within_memory(F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc &) {
    return 1;
  }
}

}  // namespace

// What the library was compiled for.
API const char *mdi_instruction_set() { return MDI_INSTRUCTION_SET; }

// Bytes of the keys and of the values of 16 positions of one kv head.
API void mdi_cache_bytes(Type type, int head_size, int64_t *keys, int64_t *values) {
  const auto tell = [&](auto sizes) { *keys = sizes.key_block(), *values = kLanes * sizes.value(); };
  if (type == Type::kFloat32) tell(CacheSizes<float>{head_size});
  else if (type == Type::kInt8) tell(CacheSizes<int8_t>{head_size});
  else tell(CacheSizes<Half>{head_size});
}

API int64_t mdi_packed_bytes(Type type, int outputs, int inputs) { return packed_bytes(type, outputs, inputs); }
API void mdi_pack(Type type, const void *data, const uint16_t *scales, int outputs, int inputs, uint8_t *out) {
  pack(type, data, reinterpret_cast<const Half *>(scales), outputs, inputs, out);
}

API Span *mdi_span_new(const Shape *shape, const Block *blocks, int n_blocks) {
  Span *span = nullptr;
  within_memory([&] { span = new Span(*shape, blocks, n_blocks); });
  return span;
}
API void mdi_span_delete(Span *span) { delete span; }
API int mdi_span_set_slots(Span *span, int n_threads, int context, void *const *keys, void *const *values,
                           const float *const *cos, const float *const *sin) {
  return within_memory([&] { span->set_slots(n_threads, context, keys, values, cos, sin); });
}
API int mdi_span_forward(Span *span, const float *x, float *y, const Segment *segments, int n_segments) {
  return within_memory([&] { span->forward(x, y, segments, n_segments); });
}
API void mdi_span_fork(Span *span, int source, int target, int n) { span->fork(source, target, n); }

API Head *mdi_head_new(const Norm *norm, const Linear *linear) {
  Head *head = nullptr;
  within_memory([&] { head = new Head(*norm, *linear); });
  return head;
}
API void mdi_head_delete(Head *head) { delete head; }
API int mdi_head_logits(Head *head, const float *x, float *y, int n_rows, int n_threads) {
  return within_memory([&] { head->logits(x, y, n_rows, n_threads); });
}
API void mdi_head_embed(const Head *head, const int32_t *ids, int n, float *y) { head->embed(ids, n, y); }

// Null where the bytes cannot be mapped.
API Mapping *mdi_map(int file, int64_t start, int64_t n_bytes) { return Mappings::map(file, start, n_bytes); }
API const void *mdi_mapped_data(const Mapping *mapping) { return mapping->data(); }
API int mdi_mapping_is_lost(const Mapping *mapping) { return mapping->lost; }
API void mdi_unmap(Mapping *mapping) { Mappings::unmap(mapping); }
API int mdi_n_lost_mappings() { return Mappings::n_lost(); }
