// AMX tiles for processors without them: what kernels/cpu/packed/amx.cc uses, with every rule of
// the instructions checked (Intel SDM, volume 2: LDTILECFG to TILEZERO, TDPBSSD and its kin).
// Whoever breaks one ends the process with a line that names it. Tiles belong to the thread.
//
// Included after <immintrin.h>: its names become the emulation's. Functions out of line, since this
// is compiled for instruction sets that the linker must not choose for all.
#pragma once

#include <cstdint>

namespace millrace::amx_emulator {

// The operating system's part, as kernels/packed_amx.h asks for it. Tiles end the process until a
// request for feature 18 has been granted, and again after revoke().
long request(long feature);
long permitted(unsigned long* features);
void revoke();

void load_config(const void* config);
void release();
void zero(int tile);
void load(int tile, const void* base, long stride);
void store(int tile, void* base, long stride);
// sums += a * b, of signed or unsigned bytes.
void multiply(int sums, int a, int b, bool a_signed, bool b_signed);

// Whether the calling thread has tiles configured. A thread that ends so ends the process.
bool in_use();
// Of all threads.
std::int64_t products();

}  // namespace millrace::amx_emulator

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(config) ::millrace::amx_emulator::load_config(config)
#define _tile_release() ::millrace::amx_emulator::release()
#define _tile_zero(tile) ::millrace::amx_emulator::zero(tile)
#define _tile_loadd(tile, base, stride) ::millrace::amx_emulator::load(tile, base, stride)
#define _tile_stored(tile, base, stride) ::millrace::amx_emulator::store(tile, base, stride)
#define _tile_dpbssd(sums, a, b) ::millrace::amx_emulator::multiply(sums, a, b, true, true)
#define _tile_dpbsud(sums, a, b) ::millrace::amx_emulator::multiply(sums, a, b, true, false)
#define _tile_dpbusd(sums, a, b) ::millrace::amx_emulator::multiply(sums, a, b, false, true)
#define _tile_dpbuud(sums, a, b) ::millrace::amx_emulator::multiply(sums, a, b, false, false)
