// What other stand-ins (tests/support/nccl_emulation) ask of the emulated machine: plain C, so that
// they can be compiled against CUDA's own headers.
#pragma once

struct CUstream_st;

extern "C" {
// Something to do in the order of the stream, as cudaLaunchHostFunc has it.
void cuda_emulation_submit(CUstream_st* stream, void (*function)(void*), void* argument);
// A number of the capture that the stream's work is recorded in; 0: it is done.
unsigned long long cuda_emulation_capture_id(CUstream_st* stream);
}
