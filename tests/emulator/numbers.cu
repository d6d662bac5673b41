// Arithmetic of one thread: conversions of 16-bit floats, bits, small products, pairs of halves, loads and stores.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"

namespace {

struct Format {
  const char* name;
  int fraction_bits, bias;
};
constexpr Format FLOAT16{"float16", 10, 15}, BFLOAT16{"bfloat16", 7, 127};
constexpr int PATTERNS = 1 << 16;

// By the definition of the format.
float value_of(const Format& format, int pattern) {
  const int fraction = pattern & ((1 << format.fraction_bits) - 1);
  const int exponent = (pattern & 0x7fff) >> format.fraction_bits, largest = 0x7fff >> format.fraction_bits;
  const double sign = pattern >= 0x8000 ? -1.0 : 1.0, one = 1 << format.fraction_bits;
  if (exponent == largest) return static_cast<float>(fraction == 0 ? sign * HUGE_VAL : std::nan(""));
  const double mantissa = fraction / one + (exponent > 0 ? 1.0 : 0.0);
  return static_cast<float>(sign * std::ldexp(mantissa, std::max(exponent, 1) - format.bias));
}

__global__ void widen(const unsigned short* in, float* out, int size, bool is_half) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < size; i += gridDim.x * blockDim.x) {
    out[i] = is_half ? __half2float(__ushort_as_half(in[i])) : __bfloat162float(__ushort_as_bfloat16(in[i]));
  }
}

__global__ void narrow(const float* in, unsigned short* out, int size, bool is_half) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < size; i += gridDim.x * blockDim.x) {
    out[i] = is_half ? __half_as_ushort(__float2half_rn(in[i])) : __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
  }
}

const mrt::LaunchShape WIDE{dim3(2), dim3(64)};

void test_widening(const Format& format, bool is_half) {
  Shared<unsigned short> patterns(PATTERNS);
  Shared<float> values(PATTERNS);
  for (int i = 0; i < PATTERNS; ++i) patterns[i] = static_cast<unsigned short>(i);
  run(widen, WIDE, patterns.data(), values.data(), PATTERNS, is_half);
  for (int i = 0; i < PATTERNS; ++i) {
    const float wanted = value_of(format, i);
    const bool is_right = wanted != wanted ? values[i] != values[i] : values[i] == wanted;
    if (!is_right || std::signbit(values[i]) != (i >= 0x8000 && wanted == wanted)) {
      if (wanted == wanted || !is_right) return expect(format.name, false, i);
    }
  }
}

// Between any two neighbours: the nearer one, in the middle the even one.
void test_rounding(const Format& format, bool is_half) {
  const int infinity = (0x7fff >> format.fraction_bits) << format.fraction_bits;
  std::vector<float> values;
  std::vector<int> wanted;
  for (int sign = 0; sign <= 0x8000; sign += 0x8000) {
    for (int i = 0; i < infinity; ++i) {
      const double low = value_of(format, sign + i);
      // beyond the largest number the next would be as far away again
      const double high = i + 1 < infinity ? value_of(format, sign + i + 1) : 2 * low - value_of(format, sign + i - 1);
      const auto middle = static_cast<float>((low + high) / 2), away = static_cast<float>(sign == 0 ? 1e39 : -1e39);
      const int even = sign + i + (i & 1);
      values.insert(values.end(),
                    {static_cast<float>(low), std::nextafter(middle, 0.0F), middle, std::nextafter(middle, away)});
      wanted.insert(wanted.end(), {sign + i, sign + i, even, sign + i + 1});
    }
    values.push_back(static_cast<float>(sign == 0 ? HUGE_VAL : -HUGE_VAL));
    wanted.push_back(sign + infinity);
  }
  Shared<float> in(values.size());
  Shared<unsigned short> out(values.size());
  std::copy(values.begin(), values.end(), in.data());
  run(narrow, WIDE, in.data(), out.data(), static_cast<int>(values.size()), is_half);
  expect_all(format.name, out, [&](size_t i) { return wanted[i]; });
  in[0] = std::nanf("");
  run(narrow, {dim3(1), dim3(1)}, in.data(), out.data(), 1, is_half);
  expect(format.name, out[0] == 0x7fff);
}

__global__ void whole_numbers(const int* words, long long* out, int size) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= size) return;
  const int a = words[i], b = words[(i + 1) % size], c = words[(i + 2) % size];
  const auto ua = static_cast<unsigned>(a), ub = static_cast<unsigned>(b);
  const auto both = static_cast<unsigned long long>(ua) << 32 | ub;
  const long long results[] = {__popc(ua),
                               __popcll(both),
                               __clz(a),
                               __clzll(static_cast<long long>(both)),
                               __ffs(a),
                               __ffsll(static_cast<long long>(both)),
                               __umulhi(ua, ub),
                               static_cast<long long>(__umul64hi(both, both)),
                               __dp4a(a, b, c & 0xff),
                               __dp2a_lo(a, b, c & 0xff),
                               __dp2a_hi(a, b, c & 0xff),
                               static_cast<long long>(__dp4a(ua, ub, 5U)),
                               static_cast<long long>(__dp2a_lo(ua, ub, 5U)),
                               static_cast<long long>(__dp2a_hi(ua, ub, 5U)),
                               __vadd2(ua, ub),
                               __vmaxu2(ua, ub),
                               __vminu2(ua, ub),
                               __vsubus2(ua, ub),
                               __vsadu2(ua, ub),
                               min(a, b),
                               max(ua, ub),
                               __byte_perm(ua, ub, 0x7531)};
  for (int n = 0; n < 22; ++n) out[i * 22 + n] = results[n];
}

// The same by counting and by long arithmetic.
int first_bit(unsigned long long word, int from, int to, int step) {
  for (int i = from; i != to; i += step) {
    if ((word >> i & 1) != 0) return i;
  }
  return -1;
}

template <class A, class B>
long long dot(unsigned a, unsigned b, int count, int bits_of_a, int first_b) {
  long long sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += static_cast<long long>(static_cast<A>(a >> bits_of_a * i)) * static_cast<B>(b >> 8 * (first_b + i));
  }
  return sum;
}

template <class Operation>
unsigned halves(unsigned a, unsigned b, Operation operation) {
  const unsigned low = operation(a & 0xffff, b & 0xffff) & 0xffff, high = operation(a >> 16, b >> 16) & 0xffff;
  return high << 16 | low;
}

std::vector<long long> wanted_whole(unsigned a, unsigned b, unsigned c) {
  const unsigned long long both = static_cast<unsigned long long>(a) << 32 | b;
  long long bits_of_a = 0, bits_of_b = 0;
  for (int i = 0; i < 32; ++i) bits_of_a += a >> i & 1, bits_of_b += b >> i & 1;
  const unsigned __int128 square = static_cast<unsigned __int128>(both) * both;
  const unsigned start = c & 0xff;
  const auto less = [](unsigned x, unsigned y) { return x < y ? 0U : x - y; };
  const unsigned apart = halves(a, b, [&](unsigned x, unsigned y) { return less(x, y) + less(y, x); });
  return {bits_of_a,
          bits_of_a + bits_of_b,
          31 - first_bit(a, 31, -1, -1),
          63 - first_bit(both, 63, -1, -1),
          first_bit(a, 0, 32, 1) + 1,
          first_bit(both, 0, 64, 1) + 1,
          static_cast<long long>(static_cast<unsigned long long>(a) * b >> 32),
          static_cast<long long>(square >> 64),
          dot<int8_t, int8_t>(a, b, 4, 8, 0) + start,
          dot<int16_t, int8_t>(a, b, 2, 16, 0) + start,
          dot<int16_t, int8_t>(a, b, 2, 16, 2) + start,
          dot<uint8_t, uint8_t>(a, b, 4, 8, 0) + 5,
          dot<uint16_t, uint8_t>(a, b, 2, 16, 0) + 5,
          dot<uint16_t, uint8_t>(a, b, 2, 16, 2) + 5,
          halves(a, b, [](unsigned x, unsigned y) { return x + y; }),
          halves(a, b, [](unsigned x, unsigned y) { return std::max(x, y); }),
          halves(a, b, [](unsigned x, unsigned y) { return std::min(x, y); }),
          halves(a, b, less),
          (apart >> 16) + (apart & 0xffff),
          std::min(static_cast<int>(a), static_cast<int>(b)),
          std::max(a, b),
          (a >> 8 & 0xff) | a >> 24 << 8 | (b >> 8 & 0xff) << 16 | b >> 24 << 24};
}

void test_whole_numbers() {
  // none, all, one end, the other, sign changes inside, and two without pattern
  const int words[] = {0, -1, 1, INT32_MIN, 0x7f80ff01, 0x12345678, static_cast<int>(0xdeadbeef)};
  constexpr int SIZE = sizeof words / sizeof words[0];
  Shared<int> in(SIZE);
  std::copy(words, words + SIZE, in.data());
  Shared<long long> out(SIZE * 22);
  run(whole_numbers, {dim3(1), dim3(WARP)}, in.data(), out.data(), SIZE);
  expect_all("whole numbers", out, [&](size_t i) {
    const auto at = [&](size_t n) { return static_cast<unsigned>(words[n % SIZE]); };
    return wanted_whole(at(i / 22), at(i / 22 + 1), at(i / 22 + 2))[i % 22];
  });
}

__global__ void real_numbers(const double* numbers, double* out) {
  const double a = numbers[0], b = numbers[1], c = numbers[2];
  const auto fa = static_cast<float>(a), fb = static_cast<float>(b), fc = static_cast<float>(c);
  const double results[] = {__fadd_rn(fa, fb),
                            __fsub_rn(fa, fb),
                            __fmul_rn(fa, fb),
                            __fdiv_rn(fa, fb),
                            __fsqrt_rn(fa),
                            __fmaf_rn(fa, fb, fc),
                            __dadd_rn(a, b),
                            __dsub_rn(a, b),
                            __dmul_rn(a, b),
                            __ddiv_rn(a, b),
                            __dsqrt_rn(a),
                            __fma_rn(a, b, c),
                            static_cast<double>(__float2int_rn(2.5F) + 10 * __float2int_rn(3.5F)),
                            static_cast<double>(__double2int_rn(-2.5) + 10 * __double2int_rn(1.5)),
                            static_cast<double>(__double2ll_rn(0x1p40 + 0.5)),
                            __int2float_rn(0x1000001),
                            __uint2float_rn(0x81000003U),
                            __ll2float_rn(0x100000100000001LL),
                            __uint_as_float(__float_as_uint(fa)),
                            __int_as_float(__float_as_int(fb)),
                            __longlong_as_double(__double_as_longlong(c)),
                            static_cast<double>(__float_as_uint(1.0F))};
  for (int n = 0; n < 22; ++n) out[n] = results[n];
}

void test_real_numbers() {
  // volatile: the host must round every step, as it does at run time
  volatile double a = 1.1, b = 3.3, c = -3.63;
  volatile auto fa = static_cast<float>(a), fb = static_cast<float>(b), fc = static_cast<float>(c);
  const double wanted[] = {fa + fb,
                           fa - fb,
                           fa * fb,
                           fa / fb,
                           std::sqrt(static_cast<float>(fa)),
                           std::fma(static_cast<float>(fa), static_cast<float>(fb), static_cast<float>(fc)),
                           a + b,
                           a - b,
                           a * b,
                           a / b,
                           std::sqrt(static_cast<double>(a)),
                           std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)),
                           42,
                           18,
                           0x1p40,
                           0x1000000,
                           0x81000000U,
                           0x100000200000000LL,
                           fa,
                           fb,
                           c,
                           0x3f800000};
  Shared<double> in(3), out(22);
  in[0] = a, in[1] = b, in[2] = c;
  run(real_numbers, {dim3(1), dim3(1)}, in.data(), out.data());
  expect_all("real numbers", out, [&](size_t i) { return wanted[i]; });
}

// Copies by 2, 4, 8 and 16 bytes, each through another kind of load.
template <class Vector>
__global__ void copy(const Vector* in, Vector* out, int size, int kind) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= size) return;
  if (kind == 0) __stcs(out + i, __ldg(in + i));
  if (kind == 1) __stcs(out + i, __ldcs(in + i));
  if (kind == 2) out[i] = __ldcg(in + i);
}

template <class Vector>
void test_copies(const char* type, size_t bytes) {
  static_assert(alignof(Vector) == sizeof(Vector), "a device loads it at once");
  expect(type, sizeof(Vector) == bytes);
  for (int kind = 0; kind < 3; ++kind) {
    Shared<Vector> in(WARP), out(WARP);
    auto* const written = reinterpret_cast<unsigned char*>(in.data());
    for (size_t i = 0; i < WARP * bytes; ++i) written[i] = static_cast<unsigned char>(i * 7 + 1);
    run(copy<Vector>, {dim3(1), dim3(WARP)}, in.data(), out.data(), WARP, kind);
    expect(type, std::memcmp(in.data(), out.data(), WARP * bytes) == 0);
  }
}

}  // namespace

void test_numbers() {
  test_widening(FLOAT16, true);
  test_widening(BFLOAT16, false);
  test_rounding(FLOAT16, true);
  test_rounding(BFLOAT16, false);
  test_whole_numbers();
  test_real_numbers();
  test_copies<unsigned short>("unsigned short", 2);
  test_copies<uchar4>("uchar4", 4);
  test_copies<short2>("short2", 4);
  test_copies<ushort2>("ushort2", 4);
  test_copies<short4>("short4", 8);
  test_copies<ushort4>("ushort4", 8);
  test_copies<int2>("int2", 8);
  test_copies<uint2>("uint2", 8);
  test_copies<float2>("float2", 8);
  test_copies<int4>("int4", 16);
  test_copies<uint4>("uint4", 16);
  test_copies<float4>("float4", 16);
  test_copies<double2>("double2", 16);
  test_copies<longlong2>("longlong2", 16);
  test_copies<ulonglong2>("ulonglong2", 16);
}
