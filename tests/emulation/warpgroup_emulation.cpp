// Products of warpgroups. See warpgroup_emulation.h.
#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "common/device.cuh"

namespace lgfast::emulation {
namespace {

constexpr int kRows = 64, kDepth = 16, kRowBytes = 128, kPatternBytes = 8 * kRowBytes, kChunkBytes = 16;
constexpr int kRegisters = 64 * 1024;  // of a multiprocessor

// Rows of 16-bit values in shared memory, and their bytes when the product was issued.
struct Operand {
  int rows, columns;
  std::vector<uint32_t> places;  // of the values
  std::vector<uint16_t> values;
};

struct Product {
  int group;
  std::vector<ProductLane> lanes;
  Operand a, b;
};

struct Warpgroup {
  std::vector<Product> products;  // that nobody waited for
  int committed = 0;              // groups
  bool is_fenced = false;
  int registers = 0;
};

std::vector<Warpgroup> warpgroups;
std::vector<int> writers;  // of each chunk: the thread that wrote it and has not fenced since, or -1
std::vector<int> readers;  // of each chunk: values that products not waited for read

Warpgroup& own_group() { return warpgroups[size_t(position().thread / kWarpgroupSize)]; }

void refuse_access([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes, [[maybe_unused]] bool refuse) {
#if defined(__SANITIZE_ADDRESS__)
  if (refuse) {
    __asan_poison_memory_region(from, bytes);
  } else {
    __asan_unpoison_memory_region(from, bytes);
  }
#endif
}

void refuse_registers(const ProductLane& lane, bool refuse) {
  refuse_access(lane.sums, sizeof(float) * 4 * size_t(lane.blocks), refuse);
  if (lane.a != nullptr) refuse_access(lane.a, 4 * sizeof(uint32_t), refuse);
}

uint16_t value_at(uint32_t place) {
  uint16_t value;
  std::memcpy(&value, smem() + place, sizeof(value));
  return value;
}

// Reads a descriptor: see warpgroup_descriptor in device.cuh.
Operand operand_of(uint64_t descriptor, int rows, int columns) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) * 16, stride = uint32_t(descriptor >> 32 & 0x3fff) * 16;
  if (descriptor >> 62 != 1) fail("descriptor: the swizzle is %d, not of 128 bytes (1)", int(descriptor >> 62));
  if ((descriptor >> 49 & 7) != 0) fail("descriptor: the base offset is not 0");
  if (start % kPatternBytes >= kRowBytes || stride % kPatternBytes != 0)
    fail(
        "descriptor: byte offset %u, with %u bytes to the next eight rows, does not begin eight rows from a multiple "
        "of 1024 bytes on",
        start, stride);
  if (start % kRowBytes + uint32_t(2 * columns) > uint32_t(kRowBytes)) fail("descriptor: columns beyond the row");
  Operand operand{rows, columns, {}, {}};
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      uint32_t place = start + uint32_t(row / 8) * stride + uint32_t(row % 8 * kRowBytes + 2 * column);
      place ^= (place >> 7 & 7) << 4;
      if (int(place) + 2 > smem_bytes())
        fail("descriptor: byte offset %u is outside the block's %d bytes of shared memory", place, smem_bytes());
      const int writer = writers[place / kChunkBytes];
      if (writer >= 0)
        fail("a product reads byte offset %u, which thread %d wrote without fence_async_proxy()", place, writer);
      ++readers[place / kChunkBytes];
      operand.places.push_back(place);
      operand.values.push_back(value_at(place));
    }
  }
  return operand;
}

void release(const Operand& operand) {
  for (size_t i = 0; i < operand.places.size(); ++i) {
    --readers[operand.places[i] / kChunkBytes];
    if (value_at(operand.places[i]) != operand.values[i])
      fail("byte offset %u was written before the product that reads it was waited for", operand.places[i]);
  }
}

float to_number(uint16_t bits, bool is_fp16) { return is_fp16 ? to_float(fp16{bits}) : to_float(bf16{bits}); }

// a[row][k] of each row, from shared memory or from the lanes' registers.
std::vector<float> left_rows(const Product& product) {
  const bool is_fp16 = product.lanes[0].is_fp16;
  std::vector<float> a(kRows * kDepth);
  for (size_t i = 0; i < product.a.values.size(); ++i) {
    const size_t place = product.lanes[0].is_a_transposed ? i % kRows * kDepth + i / kRows : i;
    a[place] = to_number(product.a.values[i], is_fp16);
  }
  for (int thread = 0; thread < kWarpgroupSize && product.lanes[0].a != nullptr; ++thread) {
    const int row = thread / kWarpSize * 16 + thread % kWarpSize / 4, column = thread % 4 * 2;
    for (int word = 0; word < 4; ++word) {
      float* pair = &a[size_t((row + word % 2 * 8) * kDepth + column + word / 2 * 8)];
      const uint32_t bits = product.lanes[size_t(thread)].a[word];
      pair[0] = to_number(uint16_t(bits), is_fp16);
      pair[1] = to_number(uint16_t(bits >> 16), is_fp16);
    }
  }
  return a;
}

__attribute__((no_sanitize("address", "undefined"))) void multiply(const float* a, const float* b, float* sums,
                                                                   int columns) {
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const float factor = a[row * kDepth + k];
      for (int column = 0; column < columns; ++column) sums[row * columns + column] += factor * b[k * columns + column];
    }
  }
}

void perform(const Product& product) {
  release(product.a);
  release(product.b);
  for (const ProductLane& lane : product.lanes) refuse_registers(lane, false);
  const ProductLane& any = product.lanes[0];
  const int columns = any.blocks * 8;
  const std::vector<float> a = left_rows(product);
  std::vector<float> b(size_t(kDepth * columns)), sums(size_t(kRows * columns));
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < columns; ++column) {
      const int place = any.is_transposed ? k * columns + column : column * kDepth + k;
      b[size_t(k * columns + column)] = to_number(product.b.values[size_t(place)], any.is_fp16);
    }
  }
  multiply(a.data(), b.data(), sums.data(), columns);
  for (int thread = 0; thread < kWarpgroupSize; ++thread) {
    const ProductLane& lane = product.lanes[size_t(thread)];
    const int row = thread / kWarpSize * 16 + thread % kWarpSize / 4, column = thread % 4 * 2;
    for (int i = 0; i < 4 * any.blocks; ++i) {
      const float sum = sums[size_t((row + i / 2 % 2 * 8) * columns + i / 4 * 8 + column + i % 2)];
      lane.sums[i] = any.adds ? lane.sums[i] + sum : sum;
    }
  }
}

// Of a thread of a block that has a multiprocessor to itself: in eights, up to what an instruction can name.
int registers_at_first(int groups) { return std::min(kRegisters / (groups * kWarpgroupSize) / 8 * 8, 256); }

}  // namespace

void begin_warpgroups(int threads, int smem_bytes) {
  warpgroups.assign(size_t((threads + kWarpgroupSize - 1) / kWarpgroupSize), {});
  writers.assign(size_t(smem_bytes / kChunkBytes + 1), -1);
  readers.assign(writers.size(), 0);
}

void end_warpgroups() {
  int registers = 0;
  for (const Warpgroup& group : warpgroups) {
    if (!group.products.empty()) fail("the kernel ends with products that nobody waited for");
    registers += group.registers * kWarpgroupSize;
  }
  const int first = registers_at_first(int(warpgroups.size())) * kWarpgroupSize * int(warpgroups.size());
  if (registers > first) fail("the warpgroups ask for %d registers, but the block has %d", registers, first);
}

void note_smem_write(uint32_t address) {
  const size_t chunk = address / kChunkBytes;
  if (chunk >= writers.size()) return;  // the access itself is refused
  if (readers[chunk] > 0) fail("byte offset %u is written before the product that reads it was waited for", address);
  writers[chunk] = position().thread;
}

void fence_writes() {
  for (size_t chunk = 0; chunk < writers.size(); ++chunk) {
    if (writers[chunk] == position().thread && !is_being_copied(uint32_t(chunk * kChunkBytes))) writers[chunk] = -1;
  }
}

void begin_products(void* const*) { own_group().is_fenced = true; }

void issue_product(void* const* lanes) {
  Warpgroup& group = own_group();
  if (!group.is_fenced) fail("a group of products does not begin with warpgroup_fence()");
  Product product;
  product.group = group.committed;
  for (int i = 0; i < kWarpgroupSize; ++i) product.lanes.push_back(*static_cast<const ProductLane*>(lanes[i]));
  const ProductLane& any = product.lanes[0];
  for (const ProductLane& lane : product.lanes) {
    if (lane.a_descriptor != any.a_descriptor || lane.b_descriptor != any.b_descriptor || lane.adds != any.adds)
      fail("the threads of a warpgroup name different operands");
  }
  if (any.a == nullptr)
    product.a =
        any.is_a_transposed ? operand_of(any.a_descriptor, kDepth, kRows) : operand_of(any.a_descriptor, kRows, kDepth);
  product.b = any.is_transposed ? operand_of(any.b_descriptor, kDepth, any.blocks * 8)
                                : operand_of(any.b_descriptor, any.blocks * 8, kDepth);
  for (const ProductLane& lane : product.lanes) refuse_registers(lane, true);
  group.products.push_back(std::move(product));
}

void commit_products(void* const*) {
  ++own_group().committed;
  own_group().is_fenced = false;
}

void wait_for_products(void* const* pending) {
  Warpgroup& group = own_group();
  group.is_fenced = false;
  const int done = group.committed - *static_cast<const int*>(pending[0]);
  const auto rest = std::find_if(group.products.begin(), group.products.end(),
                                 [&](const Product& product) { return product.group >= done; });
  std::for_each(group.products.begin(), rest, perform);
  group.products.erase(group.products.begin(), rest);
  for (const Product& product : group.products)
    for (const ProductLane& lane : product.lanes) refuse_registers(lane, true);  // two may have the same sums
}

void set_registers(void* const* count) {
  const int registers = *static_cast<const int*>(count[0]);
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    fail("a thread cannot have %d registers: a multiple of 8, 24 to 256", registers);
  own_group().registers = registers;
}

}  // namespace lgfast::emulation
