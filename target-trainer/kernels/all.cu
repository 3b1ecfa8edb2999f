// All kernels as one translation unit. NVRTC compiles it for a GPU, a C++ compiler for the simulated GPU.
#include "memory.cu"
#include "norm.cu"
#include "elementwise.cu"
#include "attention.cu"
#include "flash.cu"
#include "loss.cu"
#include "optimizer.cu"
