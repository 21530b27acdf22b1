// A scalar argument: a number where the host knows it, a pointer where it lies on the device.
#pragma once

namespace rlhf::cuda {

struct Number {
  const float* device;  // or null: it is `value`
  float value;
  bool given;
};

}  // namespace rlhf::cuda
