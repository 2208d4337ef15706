# Verbs only; CMake does the work.
.PHONY: help build test check lint asan bench cuda
help:
	@echo "make build   library and program (build/cpu/bin/flashloom)"
	@echo "make test    all tests"
	@echo "make check   layers, format, clang-tidy over what differs from main"
	@echo "make lint    clang-tidy over all sources, and headers that compile alone"
	@echo "make asan    all tests under the address and undefined-behaviour sanitizers"
	@echo "make bench   build the benchmark programs (build/cpu/bin/*_bench)"
	@echo "make cuda    compile the CUDA code for Hopper"
build:
	cmake --preset cpu && cmake --build --preset cpu
test:
	scripts/test
check:
	python3 tools/check_layers.py
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format-19 --dry-run --Werror
	tools/lint
lint:
	cmake --preset lint && cmake --build --preset lint
asan:
	cmake --preset asan && cmake --build --preset asan && ctest --preset asan
bench:
	cmake --preset cpu && cmake --build --preset cpu --target benchmarks
cuda:
	cmake --preset cuda && cmake --build --preset cuda
