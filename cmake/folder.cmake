# One static library a folder, one test program a folder.

function(qlora_options target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  # -Wrestrict: GCC 12 reports std::string operator+ itself (GCC bug 105651).
  # Floating point means what is written: no contraction and no reassociation behind the author's back.
  set(options $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off)
  if(QLORA_WERROR)
    list(APPEND options -Werror)
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${options}>"
                                           "$<$<COMPILE_LANGUAGE:CUDA>:${QLORA_CUDA_FLAGS}>")
  # Which cards: QLORA_CUDA_FLAGS.
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_ARCHITECTURES OFF)
  if(QLORA_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()

function(qlora_folder name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${name}/*.cc)
  list(FILTER sources EXCLUDE REGEX "_(test|bench|emulated)\\.cc$")
  # Of CUDA's bodies one is built: the real one, or the one that says that there is none.
  if(QLORA_CUDA)
    list(FILTER sources EXCLUDE REGEX "_nocuda\\.cc$")
    file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${name}/*_cuda.cu)
    list(APPEND sources ${kernels})
    file(GLOB real CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${name}/cuda/*_real.cc)
    set_source_files_properties(${real} PROPERTIES COMPILE_OPTIONS "-isystem;${CUDAToolkit_INCLUDE_DIRS}")
  else()
    list(FILTER sources EXCLUDE REGEX "/cuda/.*_real\\.cc$")
  endif()
  add_library(qlora_${name} STATIC ${sources})
  target_link_libraries(qlora_${name} PUBLIC ${ARG_LINK})
  qlora_options(qlora_${name})
endfunction()

# tools/NAME.cc is a program qlora-NAME (dashes for underscores); tools/common/ is shared by all of them.
function(qlora_tools)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  file(GLOB_RECURSE common CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tools/common/*.cc)
  add_library(qlora_tools STATIC ${common})
  target_link_libraries(qlora_tools PUBLIC ${ARG_LINK})
  target_compile_definitions(qlora_tools PRIVATE QLORA_VERSION="${PROJECT_VERSION}"
                                                 QLORA_BUILD_TYPE="${CMAKE_BUILD_TYPE}")
  qlora_options(qlora_tools)
  file(GLOB mains CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tools/*.cc)
  add_custom_target(qlora_programs)
  foreach(main ${mains})
    get_filename_component(name ${main} NAME_WE)
    string(REPLACE "_" "-" name ${name})
    add_executable(${name} ${main})
    target_link_libraries(${name} PRIVATE qlora_tools)
    qlora_options(${name})
    add_dependencies(qlora_programs ${name})
    install(TARGETS ${name} RUNTIME DESTINATION bin)
    qlora_install_pages(${name})
  endforeach()
endfunction()

# qlora-bench-cuda, which measures a card (tools/bench --device cuda): not installed. In a build without CUDA tests have it
# over the emulated device (tests/emulated).
function(qlora_cuda_bench)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tools/cuda_bench/*.cc)
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  add_library(qlora_cuda_bench STATIC EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(qlora_cuda_bench PUBLIC ${ARG_LINK})
  qlora_options(qlora_cuda_bench)
  if(QLORA_CUDA)
    add_executable(qlora-bench-cuda ${PROJECT_SOURCE_DIR}/tools/cuda_bench/main.cc)
    target_link_libraries(qlora-bench-cuda PRIVATE qlora_cuda_bench)
    qlora_options(qlora-bench-cuda)
    add_dependencies(qlora_programs qlora-bench-cuda)
  endif()
endfunction()

# tests/NAME/*.cc, for the kernels the *_test.cc beside each op, and the emulated device (tests/emulated), which takes the
# place of the bodies that the libraries have (the linker looks there only for what is missing).
function(qlora_test name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${name}/*.cc
       ${PROJECT_SOURCE_DIR}/${name}/*_test.cc)
  file(GLOB support CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/support/*.cc)
  if(QLORA_SANITIZE)
    list(FILTER sources EXCLUDE REGEX "/run_faults_test\\.cc$")  # see qlora_faults
  endif()
  if(NOT sources)
    return()
  endif()
  # The tests alone, for programs that run them over other bodies (tests/mutants/kernels, tests/races).
  add_library(qlora_tests_${name} OBJECT ${sources} ${support})
  target_link_libraries(qlora_tests_${name} PUBLIC qlora_${name} GTest::gtest_main)
  target_compile_definitions(qlora_tests_${name} PRIVATE QLORA_GOLDEN="${PROJECT_SOURCE_DIR}/tests/golden"
                                                         QLORA_SOURCE="${PROJECT_SOURCE_DIR}"
                                                         QLORA_BIN="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  qlora_options(qlora_tests_${name})
  set(emulated)
  if(name MATCHES "^(memory|kernels|train)$")
    set(emulated $<TARGET_OBJECTS:qlora_emulated_memory>)
  endif()
  if(name MATCHES "^(kernels|train)$")
    list(APPEND emulated $<TARGET_OBJECTS:qlora_emulated_kernels>)
  endif()
  add_executable(test_${name} $<TARGET_OBJECTS:qlora_tests_${name}> ${emulated})
  target_link_libraries(test_${name} PRIVATE qlora_${name} GTest::gtest_main)
  set_target_properties(test_${name} PROPERTIES LINKER_LANGUAGE CXX)
  qlora_options(test_${name})
  # The names of parameters, not what they print: that may be an address.
  gtest_discover_tests(test_${name} TEST_PREFIX ${name}. NO_PRETTY_VALUES DISCOVERY_MODE PRE_TEST
                       PROPERTIES TIMEOUT 600)
endfunction()

# What tests preload into a program to make calls of the system fail. Not under the sanitizers: AddressSanitizer must be
# the first library of a process, and owns malloc; there the tests are listed as disabled.
function(qlora_faults target)
  if(QLORA_SANITIZE)
    message(STATUS "tools.RunFaults: disabled, AddressSanitizer owns the calls that it would make fail")
    add_test(NAME tools.RunFaults COMMAND ${target} --gtest_filter=*RunFaults*)
    set_tests_properties(tools.RunFaults PROPERTIES DISABLED TRUE)
    return()
  endif()
  add_library(qlora_faults MODULE ${PROJECT_SOURCE_DIR}/tests/support/faults/faults.cc)
  target_link_libraries(qlora_faults PRIVATE ${CMAKE_DL_LIBS})
  qlora_options(qlora_faults)
  set_target_properties(qlora_faults PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
  add_dependencies(${target} qlora_faults)
endfunction()

# bench_NAME: the *_bench.cc beside each op, one Google Benchmark program.
function(qlora_bench name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${name}/*_bench.cc)
  add_executable(bench_${name} ${sources})
  target_link_libraries(bench_${name} PRIVATE qlora_${name} qlora_roofs benchmark::benchmark_main)
  qlora_options(bench_${name})
endfunction()
