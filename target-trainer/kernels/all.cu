// Every kernel in one translation unit: what NVRTC, and the simulated card's C++ compiler, are given.
#include "memory.cu"
#include "norm.cu"
#include "elementwise.cu"
#include "attention.cu"
#include "flash.cu"
#include "loss.cu"
#include "optimizer.cu"
