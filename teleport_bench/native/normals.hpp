// The float32 normals of NumPy's Generator on Philox, bit for bit, several times as fast: Philox makes
// many blocks at a time, as each depends on its counter alone, and a first try of the ziggurat, which
// one in eighty fails, is no call.
//
// Philox4x64-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The ziggurat of
// 256 layers: Marsaglia and Tsang 2000, with the sign and the layer taken from the same 32 bits as
// the value, as NumPy does.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace teleport {

#if defined(__x86_64__) && defined(__SIZEOF_INT128__)
#define TELEPORT_NORMALS 1

// Words of 32 bits in the order of the stream: four of 64 a block, the low half of each first.
class Philox {
    static constexpr int64_t BLOCKS = 64, ROUNDS = 10;
    uint64_t key[2], counter = 0;
    uint32_t words[8 * BLOCKS];
    int64_t at = 8 * BLOCKS;

    static uint64_t multiply(uint64_t a, uint64_t b, uint64_t& low) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        low = uint64_t(product);
        return uint64_t(product >> 64);
    }

    void refill() {
        for (uint32_t* to = words; to < words + 8 * BLOCKS; to += 8) {
            uint64_t a = ++counter, b = 0, c = 0, d = 0, k = key[0], l = key[1];
            for (int round = 0; round < ROUNDS; ++round) {
                uint64_t low_a, low_c;
                const uint64_t high_a = multiply(0xD2E7470EE14C6C93, a, low_a);
                const uint64_t high_c = multiply(0xCA5A826395121157, c, low_c);
                a = high_c ^ b ^ k, b = low_c, c = high_a ^ d ^ l, d = low_a;
                k += 0x9E3779B97F4A7C15, l += 0xBB67AE8584CAA73B;
            }
            to[0] = uint32_t(a), to[1] = uint32_t(a >> 32), to[2] = uint32_t(b);
            to[3] = uint32_t(b >> 32), to[4] = uint32_t(c), to[5] = uint32_t(c >> 32);
            to[6] = uint32_t(d), to[7] = uint32_t(d >> 32);
        }
        at = 0;
    }

  public:
    explicit Philox(const uint64_t* key) : key{key[0], key[1]} {}

    uint32_t next() {
        if (at == 8 * BLOCKS) refill();
        return words[at++];
    }

    // The words that are there already, n of them at most: where they lie, and how many.
    const uint32_t* ahead(int64_t& n) {
        if (at == 8 * BLOCKS) refill();
        n = std::min(n, 8 * BLOCKS - at);
        return words + at;
    }
    void skip(int64_t n) { at += n; }
};

class Ziggurat {
    static constexpr double R = 3.6541528853610087963519472518;  // where the tail begins
    int32_t inside[256];  // values below this one lie within the layer above as well
    float width[256], height[256];

    static float uniform(Philox& words) { return float(words.next() >> 8) * (1.0f / 16777216.0f); }

    // The ninth bit is the sign; no branch, as half of all would be taken.
    static float with_sign(float size, uint32_t r) {
        uint32_t bits;
        std::memcpy(&bits, &size, sizeof bits);
        bits |= (r & 256) << 23;
        std::memcpy(&size, &bits, sizeof bits);
        return size;
    }

    // With the word for the first try, and as many others as it takes.
#ifndef __clang__  // which fuses nothing across statements
    [[gnu::optimize("fp-contract=off")]]
#endif
    [[gnu::noinline]] float one(uint32_t r, Philox& words) const {
        for (;; r = words.next()) {
            const uint32_t layer = r & 255;
            const int32_t value = int32_t(r >> 9);
            const float x = with_sign(float(value) * width[layer], r);
            if (value < inside[layer]) return x;
            if (layer == 0) {
                for (;;) {
                    const float beyond = -float(1 / R) * log1pf(-uniform(words));
                    const float y = -log1pf(-uniform(words));
                    if (y + y > beyond * beyond)
                        return (value >> 8 & 1) ? -(float(R) + beyond) : float(R) + beyond;
                }
            }
            const float part = (height[layer - 1] - height[layer]) * uniform(words);
            if (part + height[layer] < std::exp(-0.5 * x * x)) return x;
        }
    }

  public:
    Ziggurat() {
        using Real = long double;
        const Real r = R, top = Real(1 << 23);
        const auto f = [](Real x) { return std::exp(-x * x / 2); };
        // every layer's area is that of the last one, with the tail
        const Real tail = std::sqrt(std::acos(Real(-1)) / 2) * std::erfc(r / std::sqrt(Real(2)));
        const Real area = r * f(r) + tail;
        Real x = r;
        inside[0] = int32_t(std::lround(r * f(r) / area * top)), inside[1] = 0;
        width[0] = float(area / f(r) / top), height[0] = 1;
        for (int i = 255; i > 0; --i) {
            width[i] = float(x / top), height[i] = float(f(x));
            const Real above = std::sqrt(-2 * std::log(area / x + f(x)));
            if (i > 1) inside[i] = int32_t(std::lround(above / x * top));
            x = above;
        }
    }

    // n normals times scale.
    void fill(Philox& words, int64_t n, float scale, float* __restrict out) const {
        while (n > 0) {
            int64_t there = n, i = 0;
            const uint32_t* const r = words.ahead(there);
            for (; i < there; ++i) {  // the first tries, up to one that fails
                const int32_t layer = r[i] & 255, value = int32_t(r[i] >> 9);
                if (value >= inside[layer]) break;
                out[i] = with_sign(float(value) * width[layer], r[i]) * scale;
            }
            words.skip(i), out += i, n -= i;
            if (i < there) *out++ = one(words.next(), words) * scale, --n;
        }
    }
};

#endif

}  // namespace teleport
