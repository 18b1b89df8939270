#pragma once
// Numbers as people read them; never by locale.
#include <cstdint>
#include <string>

namespace qlora::tools {

std::string format_bytes(uint64_t bytes);  // 512 B, 1.5 KiB, 7.2 GiB (binary units)
std::string format_count(int64_t count);   // 1,830
std::string format_duration(
    double seconds);  // 0:07, 1:23, 2:03:04, 3d 04:05:06; "?" when not finite or negative
// Four significant digits without an exponent from 1e-4 to 1e6: 1.234, 0.08561, 12.34.
std::string format_value(double value);

}  // namespace qlora::tools
