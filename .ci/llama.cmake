# What the build of llama.cpp leaves out and puts together, included by CMake right after llama.cpp's project(). ggml,
# which does the arithmetic, is compiled as upstream has it.

# llama-cpp-python has switched `common` on, and nothing in Python uses it: a third of the compile time.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build common utils library" FORCE)

# libllama reads files, splits text and draws graphs for ggml. Upstream compiles its models in groups of 16 files and the
# rest one by one, each time through the same headers and templates: here the rest goes in groups too, and without the
# optimisations that only ggml's loops repay: 80 CPU-seconds in place of 150, and 1 GB of memory for the largest group.
# One file stays alone: it defines what another one defines.
function(compile_libllama_fast)
    get_target_property(sources llama SOURCES)
    list(FILTER sources INCLUDE REGEX "^[^/]+\\.cpp$") # the models have their folder in their names
    list(REMOVE_ITEM sources llama-kv-cache-dsv4.cpp)
    get_target_property(folder llama SOURCE_DIR)
    list(TRANSFORM sources PREPEND "${folder}/")

    set_source_files_properties(${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)
    target_compile_options(llama PRIVATE -O1)
endfunction()
cmake_language(DEFER CALL compile_libllama_fast)
