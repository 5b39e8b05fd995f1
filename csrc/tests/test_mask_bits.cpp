// pack, unpack and apply at every length around a byte and a chunk, contiguous and strided.
#include "mask_bits/mask_bits.h"

#include <cstring>

#include "tests/testing.h"

using namespace acdc;
using namespace acdc::testing;

int main(int argc, char** argv) {
  skip_unless_available(argc, argv);
  Random random{3};
  for (int64_t n : {0, 1, 7, 8, 9, 63, 64, 65, 4095, 4097, 65535, 65537, 200003}) {
    std::vector<uint8_t> mask(n), bits((n + 7) / 8, 0xa5), back(n, 7);
    for (auto& m : mask) m = random.unit() < 0.3;
    Vector v(mask);
    pack_mask_cpu(v.ref, bits.data(), pool(3));
    for (int64_t i = 0; i < (n + 7) / 8 * 8; ++i) CHECK((bits[i >> 3] >> (i & 7) & 1) == (i < n ? mask[i] : 0));
    unpack_mask_cpu(bits.data(), back.data(), n, pool(3));
    CHECK(back == mask);

    std::vector<uint8_t> loose(3 * n, 1);
    for (int64_t i = 0; i < n; ++i) loose[3 * i] = mask[i];
    int64_t size[1] = {n}, stride[1] = {3};
    std::vector<uint8_t> again((n + 7) / 8, 0xa5);
    pack_mask_cpu({loose.data(), n, size, stride, 1, false}, again.data(), pool(2));
    CHECK(again == bits);

    std::vector<double> values(n, -1.5);
    Vector d(values);
    MaskedTensor tensor{d.ref, bits.data(), 8};
    apply_mask_cpu(&tensor, 1, pool(2));
    for (int64_t i = 0; i < n; ++i) CHECK(values[i] == (mask[i] ? -1.5 : 0.0));
  }
  std::puts("test_mask_bits passed");
}
