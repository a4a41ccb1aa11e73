// Tells which kernels an environment variable switches off. Host only. Every call reads the variable, so that a process
// can change it.
#pragma once

#include <cstdlib>
#include <string>

namespace lgfast {

// Returns whether LGFAST_DISABLE, names with commas between, holds `name`. lgfast/_native.py lists the names of
// variants.
inline bool is_switched_off(const char* name) {
  const char* value = std::getenv("LGFAST_DISABLE");
  if (value == nullptr) return false;
  const std::string names = "," + std::string(value) + ",";
  return names.find("," + std::string(name) + ",") != std::string::npos;
}

}  // namespace lgfast
