# Libraries from the distribution, or from .deps/ where tools/setup --user unpacked them (CMAKE_PREFIX_PATH).
find_package(Threads REQUIRED)
find_package(simdjson REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)

# yaml-cpp before 0.8 exports no namespaced target.
add_library(qlora_yaml INTERFACE)
if(TARGET yaml-cpp::yaml-cpp)
  target_link_libraries(qlora_yaml INTERFACE yaml-cpp::yaml-cpp)
else()
  target_link_libraries(qlora_yaml INTERFACE yaml-cpp)
endif()

# PCRE2 ships no CMake package in Debian or Ubuntu.
find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
add_library(qlora_pcre2 INTERFACE)
target_include_directories(qlora_pcre2 SYSTEM INTERFACE ${PCRE2_INCLUDE_DIR})
target_link_libraries(qlora_pcre2 INTERFACE ${PCRE2_LIBRARY})

if(QLORA_CUDA)
  find_package(CUDAToolkit 13.0 REQUIRED)
  # Static, so that a program starts on any machine: it looks for the driver itself. Its headers are for the files that
  # call it alone (folder.cmake): the others are compiled the same with CUDA and without, so that a build folder that
  # changes between the two compiles little.
  set(QLORA_CUDA_RUNTIME CUDA::cudart_static)
  # cuBLASLt is opened when it is first wanted (kernels/cuda/cublaslt_real.cc), from where the system looks or from here.
  list(APPEND CMAKE_BUILD_RPATH ${CUDAToolkit_LIBRARY_DIR} ${PROJECT_SOURCE_DIR}/.deps/cuda/lib)
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  # sm_80 serves 86 and 89, the PTX what comes later.
  set(QLORA_CUDA_ARCHITECTURES "80;90a;120" CACHE STRING "architectures that get a cubin")
  set(QLORA_CUDA_FLAGS -gencode=arch=compute_80,code=compute_80 --expt-relaxed-constexpr -fmad=false
                       -Xcompiler=-Wall,-Wextra,-ffp-contract=off)
  foreach(a ${QLORA_CUDA_ARCHITECTURES})
    list(APPEND QLORA_CUDA_FLAGS -gencode=arch=compute_${a},code=sm_${a})
  endforeach()
  if(QLORA_WERROR)
    list(APPEND QLORA_CUDA_FLAGS -Werror=all-warnings)
  endif()
endif()

if(QLORA_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
