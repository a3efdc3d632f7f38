# The CUDA kernels of the module, with nvcc from the path or from PyPI's nvidia-cuda-nvcc.

# A wheel of nvcc lies beside the other packages of the building Python; `pip` puts it on no path.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import nvidia; print(nvidia.__path__[0])"
                  OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin)
  if(NOT CMAKE_CUDA_COMPILER AND wheels)
    file(GLOB found ${wheels}/cu*/bin/nvcc)
    if(found)
      list(GET found -1 CMAKE_CUDA_COMPILER)
    endif()
  endif()
endif()

# A program for every major version, and code that later ones compile for themselves.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100)
endif()
enable_language(CUDA)

file(GLOB kernels CONFIGURE_DEPENDS csrc/cuda/*.cu)
target_sources(_C PRIVATE ${kernels})
target_include_directories(_C PRIVATE csrc/cuda)
# No libcudart to find at run time: torch has its own, and streams are the driver's.
set_target_properties(_C PROPERTIES
  CUDA_RUNTIME_LIBRARY Static
  CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}"
  CUDA_STANDARD 17
  CUDA_STANDARD_REQUIRED ON)
target_compile_options(_C PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 --compress-mode=size>)
