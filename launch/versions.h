// What this build is made of, for `ferry --version`.
#pragma once
#include <string>

namespace ferry {

// "ferry 0.1.0" and one line for each library: its version, or "not built in".
std::string describe_versions();

// "UCX_TLS=tcp OMPI_MCA_pml=ob1": what the environment sets for transports and for Ferry itself.
std::string describe_environment();

}  // namespace ferry
