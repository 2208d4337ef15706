# Compilers, warnings, caches and sanitizers: everything that concerns all targets.

find_program(CCACHE ccache)
if(CCACHE)
  # Precompiled headers are rebuilt with other timestamps in each build folder; without this ccache
  # never hits on a file that uses one.
  set(ENV{CCACHE_SLOPPINESS} "pch_defines,time_macros")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

# Option structs are written with designated initialisers that name what differs from the default.
add_library(flashloom_warnings INTERFACE)
target_compile_options(flashloom_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Werror -Wno-missing-field-initializers>)
if(FLASHLOOM_FUZZ)  # the one build with clang; its warnings are clang-tidy's business
  target_compile_options(flashloom_warnings INTERFACE -Wno-error)
endif()

# Portable code for every x86-64 (and others); the fast paths are chosen at run time by Highway.
# -ffp-contract=off keeps a*b+c two roundings everywhere that does not ask for a fused one, so that
# the float32 loops outside the kernels give the same bits on every machine.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
# Highway compiles each kernel once a target, seconds each: AVX-512, AVX2 and scalar code on x86.
add_compile_definitions($<$<COMPILE_LANGUAGE:CXX>:HWY_DISABLED_TARGETS=\(HWY_SSSE3|HWY_SSE4\)>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>)
endif()

if(FLASHLOOM_FUZZ)
  set(FLASHLOOM_SANITIZE ON)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()

if(FLASHLOOM_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Beside the sanitizers' code GCC 12 finds std::regex's function objects uninitialised.
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
  endif()
endif()

if(FLASHLOOM_LINT)
  find_program(CLANG_TIDY clang-tidy-19 REQUIRED)
  # Apart from the compiler: GCC's errors come with any build, and lint need not compile and link.
  # It compiles each header alone, too, without the libraries that CMake's own target would build.
  add_custom_target(lint COMMAND ${PROJECT_SOURCE_DIR}/tools/lint --all --build ${PROJECT_BINARY_DIR}
                    USES_TERMINAL COMMENT "clang-tidy over every source")
  set(CMAKE_VERIFY_INTERFACE_HEADER_SETS ON)
endif()

if(FLASHLOOM_CUDA)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  endif()
  set(FLASHLOOM_PORTABLE_ARCHITECTURES "90a-real" CACHE STRING
      "Of kernels that run on more than Hopper; 80-real serves the A100 and the cards of 2022")
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # CMake 3.25 does not know that nvcc speaks C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  if(FLASHLOOM_CUDA_DEBUG)  # flashloom/cuda/debug.cuh
    add_compile_definitions($<$<COMPILE_LANGUAGE:CUDA>:FLASHLOOM_CUDA_DEBUG=1>)
  endif()
  string(APPEND CMAKE_CUDA_FLAGS " -Werror=all-warnings -Xptxas=-v --expt-relaxed-constexpr")
  set_property(GLOBAL PROPERTY JOB_POOLS nvcc=1)
endif()
