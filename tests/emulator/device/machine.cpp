// The scheduler of the emulated device: blocks one after the other or together, fibers from one barrier to the next.
#include "device/machine.h"

#include <algorithm>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "device/context.h"

__thread uint3 threadIdx, blockIdx;
__thread uint3 blockDim, gridDim;

namespace mrt::emulator {

namespace {

enum class State { ready, at_block, at_warp, at_grid, exited };

// What a passed barrier leaves for ThreadSanitizer. Two in turn: a fast thread may reach the next barrier before a slow one
// has left this one, and must not be ordered before it.
struct Token {
  char of_turn[2] = {};
  unsigned turn = 0;
  char* now() { return &of_turn[turn & 1]; }
};

struct Block;

struct Fiber {
  Context context;
  Block* block = nullptr;
  unsigned rank = 0;
  uint3 index{};
  State state = State::ready;
  bool predicate = false;
  Count count;                      // answer of the last barrier
  const char* primitive = nullptr;  // at a meeting: which, with whom, with what
  unsigned mask = 0;
  uint64_t value = 0;
  Values values;  // answer of the last meeting
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Shared = std::unique_ptr<unsigned char, Free>;

// Aligned like a device's, exactly as long as asked for, so that AddressSanitizer guards its end; full of NaN.
Shared new_shared(size_t bytes) {
  constexpr size_t ALIGNMENT = 128;
  void* memory = nullptr;
  if (posix_memalign(&memory, ALIGNMENT, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return Shared(static_cast<unsigned char*>(memory));
}

constexpr size_t GAP = 128;                  // poisoned bytes between two declared arrays
constexpr size_t ARENA = 2 * STATIC_SHARED;  // room for the gaps

struct Block {
  Block(uint3 block_index, const Grid& grid)
      : index(block_index),
        size(grid.threads.x * grid.threads.y * grid.threads.z),
        live(size),
        fibers(new Fiber[size]),
        dynamic(new_shared(grid.dynamic_shared)),
        arena(new_shared(ARENA)),
        meetings(new Token[size]) {
    poison(arena.get(), ARENA);
  }
  ~Block() { unpoison(arena.get(), ARENA); }

  uint3 index;
  unsigned size, live, waiting = 0;
  std::unique_ptr<Fiber[]> fibers;
  std::vector<std::unique_ptr<Stack>> stacks;
  Shared dynamic, arena;
  std::map<const void*, size_t> declared;  // where in the arena
  size_t arena_used = 0, declared_bytes = 0;
  Token barrier;
  std::unique_ptr<Token[]> meetings;  // by the lowest lane of the mask
};

enum class Order { forward, reverse, random };
Order order = Order::forward;
unsigned long long order_seed = 0;

struct Machine {
  Context caller;
  Fiber* current = nullptr;
  const Grid* grid = nullptr;
  const std::function<void()>* kernel = nullptr;
  size_t shared_limit = 0;
  std::vector<std::unique_ptr<Block>> blocks;  // that run now
  unsigned live = 0, at_grid = 0;
  Token grid_barrier;
  char fences = 0, ends = 0;  // tokens
  std::exception_ptr error;
  std::vector<std::unique_ptr<Stack>> spare;
  std::mt19937_64 random;
};

Machine& machine() {
  static thread_local Machine one;
  return one;
}

uint3 sizes(dim3 d) {
  return {d.x, d.y, d.z};
}

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

// Back to the scheduler, until it lets this fiber run on.
void wait(bool for_ever = false) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  fiber.context.go_to(m.caller, for_ever);
}

void open_block_barrier(Block& block) {
  if (block.waiting == 0 || block.waiting != block.live) return;
  Count count;
  for (unsigned i = 0; i < block.size; ++i) {
    const Fiber& fiber = block.fibers[i];
    if (fiber.state != State::at_block) continue;
    ++count.threads;
    count.holding += fiber.predicate;
  }
  for (unsigned i = 0; i < block.size; ++i) {
    Fiber& fiber = block.fibers[i];
    if (fiber.state != State::at_block) continue;
    fiber.count = count;
    fiber.state = State::ready;
  }
  block.waiting = 0;
  ++block.barrier.turn;
}

void open_grid_barrier(Machine& m) {
  if (m.at_grid == 0 || m.at_grid != m.live) return;
  for (const auto& block : m.blocks) {
    for (unsigned i = 0; i < block->size; ++i) {
      if (block->fibers[i].state == State::at_grid) block->fibers[i].state = State::ready;
    }
  }
  m.at_grid = 0;
  ++m.grid_barrier.turn;
}

unsigned lowest_lane(unsigned mask) {
  return static_cast<unsigned>(__builtin_ctz(mask));
}

// Opens the meeting that `fiber` waits for when everyone who can come is there.
void open_meeting(const Fiber& fiber) {
  Block& block = *fiber.block;
  const unsigned first = fiber.rank / WARP * WARP, mask = fiber.mask;
  Values values;
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if ((mask >> lane & 1) == 0 || first + lane >= block.size) continue;
    const Fiber& other = block.fibers[first + lane];
    if (other.state == State::exited) continue;
    const bool is_here =
        other.state == State::at_warp && other.mask == mask && std::strcmp(other.primitive, fiber.primitive) == 0;
    if (!is_here) return;
    values.present |= 1U << lane;
    values.of[lane] = other.value;
  }
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if ((values.present >> lane & 1) == 0) continue;
    Fiber& other = block.fibers[first + lane];
    other.values = values;
    other.state = State::ready;
  }
  ++block.meetings[first + lowest_lane(mask)].turn;
}

// An exit can be what the others waited for.
void exit_fiber(Machine& m, Fiber& fiber) {
  Block& block = *fiber.block;
  fiber.state = State::exited;
  --block.live;
  --m.live;
  open_block_barrier(block);
  open_grid_barrier(m);
  const unsigned first = fiber.rank / WARP * WARP;
  for (unsigned rank = first; rank < std::min(first + WARP, block.size); ++rank) {
    if (block.fibers[rank].state == State::at_warp) open_meeting(block.fibers[rank]);
  }
}

void run_fiber() {
  Machine& m = machine();
  Context::arrive(m.caller);
  try {
    (*m.kernel)();
  } catch (...) {
    if (!m.error) m.error = std::current_exception();
  }
  release(&m.ends);
  exit_fiber(m, *m.current);
  wait(true);
}

std::string describe(const Fiber& fiber) {
  switch (fiber.state) {
    case State::at_block:
      return "at __syncthreads";
    case State::at_grid:
      return "at the grid's barrier";
    case State::at_warp: {
      char mask[16];
      std::snprintf(mask, sizeof mask, "0x%08x", fiber.mask);
      return std::string("at ") + fiber.primitive + " with mask " + mask;
    }
    case State::ready:
      return "ready";
    case State::exited:
      return "exited";
  }
  return "";
}

std::string deadlock(const Machine& m) {
  std::string report = "no thread can go on";
  for (const auto& block : m.blocks) {
    std::map<std::string, int> threads;
    for (unsigned i = 0; i < block->size; ++i) ++threads[describe(block->fibers[i])];
    report += "; block " + text(block->index);
    const char* separator = ": ";
    for (const auto& [where, count] : threads) {
      report += separator + std::to_string(count) + " " + where;
      separator = ", ";
    }
  }
  return report;
}

template <class T>
void arrange(std::vector<T>& things, Order how, std::mt19937_64& random) {
  if (how == Order::reverse) std::reverse(things.begin(), things.end());
  if (how != Order::random) return;
  for (size_t i = things.size(); i > 1; --i) std::swap(things[i - 1], things[random() % i]);
}

void start_block(Machine& m, uint3 index) {
  m.blocks.push_back(std::make_unique<Block>(index, *m.grid));
  Block& block = *m.blocks.back();
  const dim3 threads = m.grid->threads;
  for (unsigned rank = 0; rank < block.size; ++rank) {
    Fiber& fiber = block.fibers[rank];
    fiber.block = &block;
    fiber.rank = rank;
    fiber.index = {rank % threads.x, rank / threads.x % threads.y, rank / threads.x / threads.y};
    if (m.spare.empty()) m.spare.push_back(std::make_unique<Stack>());
    block.stacks.push_back(std::move(m.spare.back()));
    m.spare.pop_back();
  }
  // Last, so that the fibers are ordered after the filling of the memory.
  for (unsigned rank = 0; rank < block.size; ++rank) block.fibers[rank].context.start(*block.stacks[rank], run_fiber);
}

// Runs m.blocks to their end.
void run_blocks(Machine& m) {
  std::vector<Fiber*> fibers;
  for (const auto& block : m.blocks) {
    for (unsigned i = 0; i < block->size; ++i) fibers.push_back(&block->fibers[i]);
  }
  m.live = static_cast<unsigned>(fibers.size());
  m.at_grid = 0;
  if (order == Order::reverse) arrange(fibers, order, m.random);
  while (m.live > 0) {
    if (order == Order::random) arrange(fibers, order, m.random);
    bool is_stuck = true;
    for (Fiber* fiber : fibers) {
      if (fiber->state != State::ready) continue;
      is_stuck = false;
      m.current = fiber;
      threadIdx = fiber->index;
      blockIdx = fiber->block->index;
      m.caller.go_to(fiber->context);
      if (m.error) return;
    }
    if (is_stuck) throw Fault(deadlock(m));
  }
}

// A device knows nothing of how the caller's thread rounds or whether it flushes subnormals.
class OwnArithmetic {
 public:
  OwnArithmetic() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~OwnArithmetic() { std::fesetenv(&callers_); }
  OwnArithmetic(const OwnArithmetic&) = delete;
  OwnArithmetic& operator=(const OwnArithmetic&) = delete;

 private:
  std::fenv_t callers_;
};

std::vector<uint3> indices(dim3 blocks) {
  std::vector<uint3> all;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) all.push_back({x, y, z});
    }
  }
  return all;
}

// Leaves the machine empty, however a launch ends.
class Launch {
 public:
  Launch(Machine& m, const Grid& grid, size_t shared_limit, const std::function<void()>& kernel) : m_(m) {
    if (m.grid != nullptr) throw Fault("a kernel was launched from a kernel");
    m.grid = &grid;
    m.kernel = &kernel;
    m.shared_limit = shared_limit;
    m.error = nullptr;
    m.random.seed(order_seed);
    m.caller.adopt();
    blockDim = sizes(grid.threads);
    gridDim = sizes(grid.blocks);
  }
  ~Launch() {
    finish_blocks();
    acquire(&m_.ends);
    done_.clear();
    m_.grid = nullptr;
    m_.current = nullptr;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  // Under ThreadSanitizer memory and stacks are kept to the end of the launch: freeing them orders this block before the
  // next one, and a second life of an address looks like a race.
  void finish_blocks() {
    for (auto& block : m_.blocks) {
      auto& kept = watches_threads() ? stacks_ : m_.spare;
      for (auto& stack : block->stacks) kept.push_back(std::move(stack));
      if (watches_threads()) done_.push_back(std::move(block));
    }
    m_.blocks.clear();
  }

 private:
  Machine& m_;
  std::vector<std::unique_ptr<Block>> done_;
  std::vector<std::unique_ptr<Stack>> stacks_;
};

}  // namespace

Count sync_block(bool predicate) {
  Fiber& fiber = *machine().current;
  Block& block = *fiber.block;
  fiber.predicate = predicate;
  fiber.state = State::at_block;
  ++block.waiting;
  char* const token = block.barrier.now();
  release(token);
  open_block_barrier(block);
  wait();
  acquire(token);
  return fiber.count;
}

void sync_grid() {
  Machine& m = machine();
  if (!m.grid->is_cooperative) fail("the grid's barrier needs a cooperative launch");
  m.current->state = State::at_grid;
  ++m.at_grid;
  char* const token = m.grid_barrier.now();
  release(token);
  open_grid_barrier(m);
  wait();
  acquire(token);
}

Values meet(const char* primitive, unsigned mask, uint64_t value, bool orders_memory) {
  Fiber& fiber = *machine().current;
  if ((mask >> lane() & 1) == 0) fail(std::string(primitive) + " is called by a lane that its mask leaves out");
  fiber.state = State::at_warp;
  fiber.primitive = primitive;
  fiber.mask = mask;
  fiber.value = value;
  char* const token = fiber.block->meetings[fiber.rank / WARP * WARP + lowest_lane(mask)].now();
  if (orders_memory) release(token);
  open_meeting(fiber);
  wait();
  if (orders_memory) acquire(token);
  return fiber.values;
}

void fence() {
  release(&machine().fences);
  acquire(&machine().fences);
}

unsigned lane() {
  return machine().current->rank % WARP;
}

void fail(const std::string& what) {
  const Fiber& fiber = *machine().current;
  throw Fault("block " + text(fiber.block->index) + ", thread " + text(fiber.index) + ": " + what);
}

void* shared_array(const void* declaration, size_t bytes, size_t alignment) {
  Machine& m = machine();
  Block& block = *m.current->block;
  const auto found = block.declared.find(declaration);
  if (found != block.declared.end()) return block.arena.get() + found->second;
  block.declared_bytes += bytes;
  if (block.declared_bytes > STATIC_SHARED) fail("a block may declare 48 KiB of shared memory");
  if (block.declared_bytes + m.grid->dynamic_shared > m.shared_limit) {
    fail("declared and dynamic shared memory exceed the " + std::to_string(m.shared_limit) + " bytes of this launch");
  }
  const size_t at = (block.arena_used + alignment - 1) / alignment * alignment;
  if (at + bytes > ARENA) fail("too many arrays of shared memory");
  block.arena_used = (at + bytes + 2 * GAP - 1) / GAP * GAP;
  unpoison(block.arena.get() + at, bytes);
  block.declared[declaration] = at;
  return block.arena.get() + at;
}

void* dynamic_shared_bytes() {
  return machine().current->block->dynamic.get();
}

void run(const Grid& grid, size_t shared_limit, const std::function<void()>& kernel) {
  Machine& m = machine();
  const OwnArithmetic arithmetic;
  Launch launch(m, grid, shared_limit, kernel);
  std::vector<uint3> blocks = indices(grid.blocks);
  arrange(blocks, order, m.random);
  for (size_t i = 0; i < blocks.size();) {
    const size_t together = grid.is_cooperative ? blocks.size() : 1;
    for (size_t end = i + together; i < end; ++i) start_block(m, blocks[i]);
    run_blocks(m);
    if (m.error) std::rethrow_exception(m.error);
    launch.finish_blocks();
  }
}

void set_order(const std::string& name) {
  const std::string RANDOM = "random:";
  if (name == "forward") {
    order = Order::forward;
  } else if (name == "reverse") {
    order = Order::reverse;
  } else if (name.compare(0, RANDOM.size(), RANDOM) == 0) {
    order = Order::random;
    order_seed = std::stoull(name.substr(RANDOM.size()));
  } else {
    throw std::invalid_argument("order must be forward, reverse or random:SEED, got " + name);
  }
}

}  // namespace mrt::emulator

// For callers without C++: 0 where the order is understood.
extern "C" __attribute__((visibility("default"))) int mrt_emulator_set_order(const char* name) {
  try {
    mrt::emulator::set_order(name);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
