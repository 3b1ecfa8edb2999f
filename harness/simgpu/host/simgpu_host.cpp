// Emulates the tensor cores: one matrix product of a warp. Must not know any kernel.
// Sums run over k in ascending order.
#include "simgpu_host.h"

static float bf16_to_f32(unsigned bits) { return simgpu_bits<float>(bits << 16); }

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. The PTX ISA defines which elements each lane holds:
// lane = group * 4 + member.
extern "C" void simgpu_multiply(struct simgpu_warp *warp) {
    float a[16][16], b[16][8], d[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned group = lane / 4, member = lane % 4;
        for (unsigned i = 0; i < 4; i++) {
            unsigned row = group + (i & 1 ? 8 : 0), column = member * 2 + (i & 2 ? 8 : 0);
            a[row][column] = bf16_to_f32(warp->a[lane][i] & 0xffffu);
            a[row][column + 1] = bf16_to_f32(warp->a[lane][i] >> 16);
        }
        for (unsigned i = 0; i < 2; i++) {
            unsigned row = member * 2 + i * 8;
            b[row][group] = bf16_to_f32(warp->b[lane][i] & 0xffffu);
            b[row + 1][group] = bf16_to_f32(warp->b[lane][i] >> 16);
        }
        for (unsigned i = 0; i < 4; i++) d[group + (i & 2 ? 8 : 0)][member * 2 + (i & 1)] = warp->d[lane][i];
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned group = lane / 4, member = lane % 4;
        for (unsigned i = 0; i < 4; i++) warp->d[lane][i] = d[group + (i & 2 ? 8 : 0)][member * 2 + (i & 1)];
    }
}
