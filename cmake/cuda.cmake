# Makes the target lgfast._cuda if nvcc is found.
include(cmake/architectures.cmake)
include(cmake/earlier_library.cmake)

set(CUDA_LIBRARY "${LGFAST_OUTPUT_DIR}/_cuda.so")
set(CUDA_LIBRARY_HASH "${CMAKE_BINARY_DIR}/_cuda.sha256")
function(build_without_cuda reason)
  message(STATUS "lgfast: CPU kernels only (${reason})")
  remove_earlier_library("${CUDA_LIBRARY}" "${CUDA_LIBRARY_HASH}")
endfunction()

if(LGFAST_CUDA STREQUAL "off")
  build_without_cuda("LGFAST_CUDA=off")
  return()
endif()
cmake_architectures("${LGFAST_ARCH_LIST}" CMAKE_CUDA_ARCHITECTURES)  # a wrong list is an error even without nvcc
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(LGFAST_CUDA STREQUAL "on")
    message(FATAL_ERROR "lgfast: LGFAST_CUDA=on but no working nvcc; put nvcc on PATH or set CUDACXX")
  endif()
  build_without_cuda("no working nvcc on PATH or in CUDACXX")
  return()
endif()
if(NOT LGFAST_ARCH_LIST)
  default_arch_list("${CMAKE_CUDA_COMPILER}" arch_list)
  cmake_architectures("${arch_list}" CMAKE_CUDA_ARCHITECTURES)
endif()

enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
list(JOIN CMAKE_CUDA_ARCHITECTURES " " cuda_archs)
message(STATUS "lgfast: CUDA kernels for ${cuda_archs}")

add_library(_cuda MODULE ${LGFAST_CUDA_SOURCES})
set_source_files_properties(csrc/cuda_build_info.cpp PROPERTIES COMPILE_DEFINITIONS
  "LGFAST_CUDA_COMPILER=\"${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}\";LGFAST_CUDA_ARCHS=\"${cuda_archs}\"")
set_target_properties(_cuda PROPERTIES
  PREFIX "" CUDA_RUNTIME_LIBRARY Static LIBRARY_OUTPUT_DIRECTORY "${LGFAST_OUTPUT_DIR}")
add_custom_command(TARGET _cuda POST_BUILD VERBATIM
  COMMAND ${CMAKE_COMMAND} -E sha256sum "${CUDA_LIBRARY}" > "${CUDA_LIBRARY_HASH}")

# short_attention multiplies bfloat16 and copies asynchronously, as only GPUs from 8.0 on can.
set(cuda_targets _cuda)
architectures_from(80 "${CMAKE_CUDA_ARCHITECTURES}" attention_archs)
if(attention_archs)
  add_library(_cuda_attention OBJECT ${LGFAST_CUDA_ATTENTION_SOURCES})
  set_target_properties(_cuda_attention PROPERTIES CUDA_ARCHITECTURES "${attention_archs}" CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(_cuda PRIVATE _cuda_attention)
  if("90a-real" IN_LIST attention_archs AND NOT "90-real" IN_LIST attention_archs)
    # A kernel multiplies by warpgroups. The driver must not take code of 9.0 for it, which cannot.
    target_compile_definitions(_cuda_attention PRIVATE LGFAST_COMPILED_FOR_SM90A)
  endif()
  list(APPEND cuda_targets _cuda_attention)
endif()
foreach(target ${cuda_targets})
  target_link_libraries(${target} PRIVATE stable_torch ${CMAKE_DL_LIBS})
  target_include_directories(${target} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_definitions(${target} PRIVATE ${STABLE_TARGET})
  set_target_properties(${target} PROPERTIES CUDA_VISIBILITY_PRESET hidden)
endforeach()
