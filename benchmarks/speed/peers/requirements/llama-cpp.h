// Included before every C++ file of llama.cpp. GCC 12's _tile_loadconfig claims to read 8 bytes of the 64 that the
// instruction reads, so the compiler drops the stores to the others and llama.cpp dies on processors with AMX
// (ggml-org/llama.cpp#20824). This one reads them all.
#if defined(__x86_64__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory")
#endif
