// The driver's header, for its types: functions are asked for at run time
// (cudaGetDriverEntryPointByVersion), since nothing links with the driver.
#pragma once
#include <cuda.h>

#include "base/cuda_api.h"
