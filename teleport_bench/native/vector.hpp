// Vector registers by the compiler's vector types, which GCC and Clang share.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace teleport {

// Compiled once, not again at each of its calls: half of the time that compiling takes.
#define ONCE [[gnu::noinline]] inline


#if defined(__AVX512F__)
#define VECTOR_BYTES 64
constexpr int TILE = 16, WIDE_TILE = 24;  // accumulators of an inner loop: of 32 registers
#else
#if defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
constexpr int TILE = 8, WIDE_TILE = 12;  // of 16
#endif

typedef float Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef int32_t Words __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(4)));
constexpr int V = VECTOR_BYTES / sizeof(float);
typedef uint8_t Bytes __attribute__((vector_size(V), may_alias, aligned(1)));

template <int N> using Size = std::integral_constant<int, N>;

inline Vector splat(float a) { return Vector{} + a; }

inline Vector widened(const uint8_t* from) {
    return __builtin_convertvector(*(const Bytes*)from, Vector);
}

// The first n <= V values at an address.
inline Vector get(const float* from, int64_t n) {
    if (n == V) return *(const Unaligned*)from;
#ifdef __AVX512F__
    return (Vector)_mm512_maskz_loadu_ps((1u << n) - 1, from);
#else
    Vector v = {};
    std::memcpy(&v, from, n * sizeof(float));
    return v;
#endif
}
inline void put(float* to, Vector v, int64_t n) {
    if (n == V)
        *(Unaligned*)to = v;
    else
#ifdef __AVX512F__
        _mm512_mask_storeu_ps(to, (1u << n) - 1, (__m512)v);
#else
        std::memcpy(to, &v, n * sizeof(float));
#endif
}

template <int D, int... J> inline Vector low(Vector a, Vector b, std::integer_sequence<int, J...>) {
    return __builtin_shufflevector(a, b, ((J & D) ? V + J - D : J)...);
}
template <int D, int... J>
inline Vector high(Vector a, Vector b, std::integer_sequence<int, J...>) {
    return __builtin_shufflevector(a, b, ((J & D) ? V + J : J + D)...);
}
template <int D> inline void swap_blocks(Vector (&v)[V]) {
    constexpr auto lanes = std::make_integer_sequence<int, V>();
    for (int i = 0; i < V; ++i)
        if (!(i & D)) {
            const Vector a = v[i], b = v[i + D];
            v[i] = low<D>(a, b, lanes);
            v[i + D] = high<D>(a, b, lanes);
        }
    if constexpr (D > 1) swap_blocks<D / 2>(v);
}
// A V x V matrix of registers, by exchanging blocks off the diagonal.
inline void transpose(Vector (&v)[V]) { swap_blocks<V / 2>(v); }

template <int D, int... J> inline Vector folded(Vector v, std::integer_sequence<int, J...> lanes) {
    v += __builtin_shufflevector(v, v, (J ^ D)...);
    if constexpr (D > 1) return folded<D / 2>(v, lanes);
    return v;
}
// The sum of all lanes, by halving.
inline float sum(Vector v) {
    return folded<V / 2>(v, std::make_integer_sequence<int, V>())[0];
}

inline Vector root(Vector v) {
    for (int i = 0; i < V; ++i) v[i] = std::sqrt(v[i]);
    return v;
}

// e^x for x <= 0 to two units in the last place: 2^n e^r with |r| <= log(2)/2 and e^r by its Taylor
// polynomial of degree 7, whose remainder is below 2^-26. NaN stays NaN; below -87 it is zero.
inline Vector exponential(Vector x) {
    const Vector shifter = splat(12582912.0f);  // 1.5 2^23: adding it rounds to a whole number
    const Vector n = (x * 1.44269504f + shifter) - shifter;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Vector sound = x < -87.0f ? Vector{} : n;
    const Vector power = (Vector)((__builtin_convertvector(sound, Words) + 127) << 23);
    return x < -87.0f ? Vector{} : p * power;
}

// Calls body(first, Size<count>()) over 0 .. n - 1 in tiles of T, and of powers of two for the rest.
template <int T, class Body> inline void in_tiles(int64_t n, const Body& body, int64_t from = 0) {
    for (; from + T <= n; from += T) body(from, Size<T>());
    if constexpr (T > 1) {
        constexpr int half = T <= 2 ? 1 : T <= 4 ? 2 : T <= 8 ? 4 : T <= 16 ? 8 : 16;
        if (from < n) in_tiles<half>(n, body, from);
    }
}

}  // namespace teleport
