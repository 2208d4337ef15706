# One function a module. Files are found by their suffix, so that adding an op, a reader or a model
# edits no CMake:
#   *.cc          library            *_test.cc   test program `<module>_tests`
#   *.cu          library, CUDA      *_test.cu   test program `<module>_gpu_tests` (label gpu)
#   *_bench.cc    benchmark program of the same name
#   *.cu.in       a kernel file written once for each value of its placeholders (see below)

function(_flashloom_files folder out)
  file(GLOB_RECURSE all CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cc)
  set(library ${all})
  list(FILTER library EXCLUDE REGEX "_(test|bench)\\.cc$")
  set(test ${all})
  list(FILTER test INCLUDE REGEX "_test\\.cc$")
  set(bench ${all})
  list(FILTER bench INCLUDE REGEX "_bench\\.cc$")
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.h)
  list(FILTER headers EXCLUDE REGEX "-inl\\.h$")
  set(${out}_library ${library} PARENT_SCOPE)
  set(${out}_test ${test} PARENT_SCOPE)
  set(${out}_bench ${bench} PARENT_SCOPE)
  set(${out}_headers ${headers} PARENT_SCOPE)
  set(cuda "")
  set(cuda_test "")
  if(FLASHLOOM_CUDA)
    file(GLOB_RECURSE cuda CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cu)
    set(cuda_test ${cuda})
    list(FILTER cuda EXCLUDE REGEX "_(test|bench)\\.cu$")
    list(FILTER cuda_test INCLUDE REGEX "_test\\.cu$")
  endif()
  set(${out}_cuda ${cuda} PARENT_SCOPE)
  set(${out}_cuda_test ${cuda_test} PARENT_SCOPE)
endfunction()

function(_flashloom_prefixed out)
  set(list "")
  foreach(name ${ARGN})
    list(APPEND list flashloom::${name})
  endforeach()
  set(${out} ${list} PARENT_SCOPE)
endfunction()

function(_flashloom_test_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${arg_LINK} flashloom_warnings GTest::gmock
                        GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    FLASHLOOM_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    FLASHLOOM_PROGRAM="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/flashloom")
  _flashloom_reuse_headers(${name} tests)
  # GoogleTest's macros at -O3 cost half the time again; what tests wait for is in the library.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release,RelWithDebInfo>:-O1>)
  add_dependencies(tests ${name})
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 600)
endfunction()

# A program of its own, so that it can be taken to a machine with a GPU; its tests skip themselves
# where there is none.
function(_flashloom_gpu_test_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gmock GTest::gtest_main
                        CUDA::cudart_static)
  set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE nvcc)
  add_dependencies(tests ${name})
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 600 LABELS gpu)
endfunction()

# Headers that many sources include, read once for the whole build: two thirds of the time of a small
# source goes into reading them. flashloom_precompiled_headers(<kind> LINK targets… HEADERS …). Not
# under lint, where every source must name what it uses.
function(flashloom_precompiled_headers kind)
  cmake_parse_arguments(arg "" "" "LINK;HEADERS" ${ARGN})
  if(NOT FLASHLOOM_LINT)
    set(target flashloom_headers_${kind})
    set(source ${PROJECT_BINARY_DIR}/headers/${kind}.cc)  # CMake precompiles for a target's sources
    file(CONFIGURE OUTPUT ${source} CONTENT "")
    add_library(${target} OBJECT EXCLUDE_FROM_ALL ${source})
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(${target} PRIVATE ${arg_LINK})
    list(TRANSFORM arg_HEADERS REPLACE "(.+)" "<\\1>")
    target_precompile_headers(${target} PRIVATE ${arg_HEADERS})
  endif()
endfunction()

function(_flashloom_reuse_headers target kind)
  if(NOT FLASHLOOM_LINT)
    target_precompile_headers(${target} REUSE_FROM flashloom_headers_${kind})
    # One precompiled header serves code of one -fpic alone.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fPIC>)
  endif()
endfunction()

# flashloom_module(<folder below flashloom/> [DEPENDS modules…] [PACKAGES targets…] [ALIAS name]
#                  [TEST_DEPENDS modules…])
# makes flashloom_<name> (and flashloom::<name>), its test program and its benchmarks.
function(flashloom_module folder)
  cmake_parse_arguments(arg "" "ALIAS" "DEPENDS;PACKAGES;TEST_DEPENDS" ${ARGN})
  string(REPLACE "/" "_" name ${folder})
  _flashloom_files(flashloom/${folder} files)
  _flashloom_prefixed(depends ${arg_DEPENDS})
  set(target flashloom_${name})
  # Kernels of folders named portable/ run on compute capability 8.0 and later, the others on Hopper
  # alone; one target compiles for one list of architectures.
  set(portable ${files_cuda})
  list(FILTER portable INCLUDE REGEX "/portable/[^/]+$")
  list(FILTER files_cuda EXCLUDE REGEX "/portable/[^/]+$")
  if(portable)
    add_library(${target}_portable OBJECT ${portable})
    target_include_directories(${target}_portable PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${target}_portable PRIVATE ${depends} CUDA::cudart_static)
    set_target_properties(${target}_portable PROPERTIES JOB_POOL_COMPILE nvcc
                          POSITION_INDEPENDENT_CODE ON
                          CUDA_ARCHITECTURES "${FLASHLOOM_PORTABLE_ARCHITECTURES}")
    list(APPEND files_library $<TARGET_OBJECTS:${target}_portable>)
  endif()
  if(files_library OR files_cuda)
    set(scope PUBLIC)
    add_library(${target} STATIC ${files_library} ${files_cuda})
    target_link_libraries(${target} PRIVATE flashloom_warnings)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    _flashloom_reuse_headers(${target} library)
    if(files_cuda OR portable)
      set_target_properties(${target} PROPERTIES JOB_POOL_COMPILE nvcc
                            CUDA_SEPARABLE_COMPILATION OFF)
      target_link_libraries(${target} PUBLIC CUDA::cudart_static)
    endif()
  else()
    set(scope INTERFACE)
    add_library(${target} INTERFACE)
  endif()
  target_sources(${target} ${scope} FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}
                 FILES ${files_headers})
  target_include_directories(${target} ${scope} ${PROJECT_SOURCE_DIR})
  target_link_libraries(${target} ${scope} ${depends} ${arg_PACKAGES})
  if(FLASHLOOM_CUDA)
    target_compile_definitions(${target} ${scope} FLASHLOOM_WITH_CUDA=1)
  endif()
  add_library(flashloom::${name} ALIAS ${target})
  if(arg_ALIAS)
    add_library(flashloom::${arg_ALIAS} ALIAS ${target})
  endif()
  if(files_test)
    _flashloom_prefixed(oracles ${arg_TEST_DEPENDS})
    _flashloom_test_program(${name}_tests SOURCES ${files_test} LINK ${target} ${oracles})
  endif()
  if(files_cuda_test)
    _flashloom_gpu_test_program(${name}_gpu_tests SOURCES ${files_cuda_test} LINK ${target})
  endif()
  foreach(source ${files_bench})
    get_filename_component(bench ${source} NAME_WE)
    add_executable(${bench} EXCLUDE_FROM_ALL ${source})
    target_link_libraries(${bench} PRIVATE ${target} flashloom_warnings benchmark::benchmark
                          benchmark::benchmark_main)
    add_dependencies(benchmarks ${bench})
  endforeach()
endfunction()

# Each folder of flashloom/ops is a library of its own (flashloom::ops_<op>), so that a change in
# one op rebuilds that op and relinks, and a program can link attention and nothing else. An op
# that builds on others says so in its own `depends.txt`. flashloom::ops is all of them.
function(flashloom_ops)
  cmake_parse_arguments(arg "" "" "DEPENDS;PACKAGES" ${ARGN})
  if(FLASHLOOM_CUDA)
    list(APPEND arg_DEPENDS cuda)
  endif()
  file(GLOB folders CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/flashloom/ops
       ${PROJECT_SOURCE_DIR}/flashloom/ops/*)
  add_library(flashloom_ops INTERFACE)
  add_library(flashloom::ops ALIAS flashloom_ops)
  foreach(op ${folders})
    if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/flashloom/ops/${op})
      set(depends ${arg_DEPENDS})
      set(list ${PROJECT_SOURCE_DIR}/flashloom/ops/${op}/depends.txt)
      if(EXISTS ${list})
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${list})
        file(STRINGS ${list} others)
        foreach(other ${others})
          list(APPEND depends ops_${other})
        endforeach()
      endif()
      flashloom_module(ops/${op} DEPENDS ${depends} PACKAGES ${arg_PACKAGES})
      target_link_libraries(flashloom_ops INTERFACE flashloom_ops_${op})
    endif()
  endforeach()
  if(TARGET flashloom_ops_attention)
    add_library(flashloom::attention ALIAS flashloom_ops_attention)
  endif()
endfunction()

# flashloom_program(<name> FOLDER f DEPENDS … PACKAGES …): the program, from a folder's sources.
function(flashloom_program name)
  cmake_parse_arguments(arg "" "FOLDER" "DEPENDS;PACKAGES" ${ARGN})
  _flashloom_files(${arg_FOLDER} files)
  _flashloom_prefixed(depends ${arg_DEPENDS})
  if(files_library)
    add_executable(${name} ${files_library} ${files_cuda})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
    if(files_cuda)
      set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE nvcc)
      target_link_libraries(${name} PRIVATE CUDA::cudart_static)
    endif()
    target_link_libraries(${name} PRIVATE ${depends} ${arg_PACKAGES} flashloom_warnings)
    _flashloom_reuse_headers(${name} library)
    # Flags, files and tables: nothing here is hot, and -O3 costs half the time again.
    target_compile_options(${name} PRIVATE $<$<CONFIG:Release,RelWithDebInfo>:-O1>)
    target_compile_definitions(${name} PRIVATE FLASHLOOM_VERSION="${PROJECT_VERSION}"
                               FLASHLOOM_BUILD_TYPE="$<CONFIG>")
  endif()
endfunction()

# Tests that cross modules, and end-to-end tests that run the program.
function(flashloom_cross_tests)
  cmake_parse_arguments(arg "" "FOLDER" "DEPENDS;PACKAGES" ${ARGN})
  _flashloom_files(${arg_FOLDER} files)
  _flashloom_prefixed(depends ${arg_DEPENDS})
  if(files_test)
    _flashloom_test_program(cross_tests SOURCES ${files_test}
                            LINK ${depends} ${arg_PACKAGES})
    if(TARGET flashloom)
      add_dependencies(cross_tests flashloom)
    endif()
  endif()
endfunction()

# flashloom_fuzz_targets(FOLDER f PROGRAM_SOURCES … DEPENDS … PACKAGES …): a test program that reads
# the kept corpus with every <name>_fuzz.cc and, with FLASHLOOM_FUZZ, a libFuzzer program
# fuzz_<name> for each. PROGRAM_SOURCES are parts of the program that targets call.
function(flashloom_fuzz_targets)
  cmake_parse_arguments(arg "" "FOLDER" "PROGRAM_SOURCES;DEPENDS;PACKAGES" ${ARGN})
  _flashloom_prefixed(depends ${arg_DEPENDS})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${arg_FOLDER}/*_fuzz.cc)
  _flashloom_test_program(fuzz_tests LINK ${depends} ${arg_PACKAGES}
                          SOURCES ${PROJECT_SOURCE_DIR}/${arg_FOLDER}/corpus_test.cc ${sources}
                                  ${arg_PROGRAM_SOURCES})
  if(FLASHLOOM_LINT)  # elsewhere only libFuzzer's programs have it
    add_library(fuzz_main OBJECT EXCLUDE_FROM_ALL
                ${PROJECT_SOURCE_DIR}/${arg_FOLDER}/libfuzzer_main.cc)
    target_include_directories(fuzz_main PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_definitions(fuzz_main PRIVATE FLASHLOOM_FUZZ_TARGET=read_gguf)
    target_link_libraries(fuzz_main PRIVATE flashloom_warnings)
  endif()
  if(FLASHLOOM_FUZZ)
    add_custom_target(fuzzers COMMENT "All fuzz targets")
    foreach(source ${sources})
      get_filename_component(name ${source} NAME_WE)
      string(REGEX REPLACE "_fuzz$" "" name ${name})
      # These readers use a file or two of train; the rest of it, and models and ops below it, would
      # only be built with sanitizers for nothing.
      set(parts_checkpoint checkpoint run_record)
      set(parts_gguf gguf_vocabulary)
      list(TRANSFORM parts_${name} REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/flashloom/train/\\1.cc"
           OUTPUT_VARIABLE parts)
      add_executable(fuzz_${name} EXCLUDE_FROM_ALL ${source} ${parts} ${arg_PROGRAM_SOURCES}
                     ${PROJECT_SOURCE_DIR}/${arg_FOLDER}/libfuzzer_main.cc)
      target_include_directories(fuzz_${name} PRIVATE ${PROJECT_SOURCE_DIR})
      target_compile_definitions(fuzz_${name} PRIVATE FLASHLOOM_FUZZ_TARGET=read_${name})
      target_link_libraries(fuzz_${name} PRIVATE flashloom::io flashloom::text ${arg_PACKAGES})
      target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
      add_dependencies(fuzzers fuzz_${name})
    endforeach()
  endif()
endfunction()

# flashloom_embed(<module> <folder> NAMESPACE n HEADER <folder>/h.h FILES a.js b.css …): files of a
# folder as string constants of the module, declared by hand in the header.
function(flashloom_embed name folder)
  cmake_parse_arguments(arg "" "NAMESPACE;HEADER" "FILES" ${ARGN})
  list(TRANSFORM arg_FILES PREPEND ${PROJECT_SOURCE_DIR}/${folder}/ OUTPUT_VARIABLE files)
  string(REPLACE ";" "," list "${files}")
  string(REPLACE "/" "_" stem ${folder})
  set(source ${PROJECT_BINARY_DIR}/embedded/${stem}.cc)
  set(script ${PROJECT_SOURCE_DIR}/cmake/EmbedFiles.cmake)
  add_custom_command(OUTPUT ${source} DEPENDS ${files} ${script} VERBATIM
    COMMAND ${CMAKE_COMMAND} -DOUTPUT=${source} -DHEADER=${folder}/${arg_HEADER}
            -DNAMESPACE=${arg_NAMESPACE} -DFILES=${list} -P ${script})
  target_sources(flashloom_${name} PRIVATE ${source})
endfunction()

# flashloom_instantiate(<ops folder>/<file>.cu.in NAME v1 v2 …) writes one .cu a value into the
# build folder (never into git) and returns the list in flashloom_instances.
function(flashloom_instantiate template name)
  get_filename_component(stem ${template} NAME_WE)
  set(instances "")
  foreach(value ${ARGN})
    set(${name} ${value})
    set(file ${PROJECT_BINARY_DIR}/instances/${stem}_${value}.cu)
    configure_file(${PROJECT_SOURCE_DIR}/${template} ${file} @ONLY)
    list(APPEND instances ${file})
  endforeach()
  set(flashloom_instances ${instances} PARENT_SCOPE)
endfunction()
