# make train     cluster the handwritten digits; what it writes lies under runs/
# make test      run the tests
# make test-instruction-sets  the CPU kernels' tests at each instruction set below this processor's best, which make test has
# make bench     compare the kernels with eager PyTorch
# make sanitize  run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz      the same for new random inputs, and damaged files for the readers, about twenty minutes
# make sanitize-threads  look for races in the kernels with ThreadSanitizer
# make torture   kill, stop, starve and damage training runs; writes the table of docs/robustness.md, about 20 minutes
# make simt      run the CUDA kernels' tests on the CPU: with the checks of csrc/simt, then under the sanitizers
# make gpu-check on a machine with a GPU: build, test and measure there, in the Python that has torch (PYTHON=...)
# make gpu-check-quick  what eight minutes of a GPU tell, the most worth first: docs/gpu.md
# make docs      the reference of the Python functions, from their docstrings, in build/docs/
# make lint      ruff and the type checker
# make dev       an editable installation, for working on the code
# make clean     remove everything that these made, but for runs/
#
# All work in .venv, with the versions of requirements.txt. Options of imc train: make train ARGS="--seed 1". Tests run in
# WORKERS processes, by default one for each core and at most 4, a file in one of them.

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= auto
# In the order of the folders, but for what tests/conftest.py puts first: the longest, such as the compilers of tests/build,
# begin early.
PARALLEL = -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SOURCES := $(shell find csrc imc imc_kernels -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.html' -o -name '*.css' -o -name '*.js')

.PHONY: train test test-instruction-sets bench sanitize sanitize-threads fuzz torture simt gpu-check gpu-check-quick docs lint dev \
    clean

train: .venv/installed
	$(BIN)/imc train $(ARGS)

test: .venv/installed
	$(BIN)/pytest $(PARALLEL) $(ARGS)

# The tests of the values that the CPU kernels give.
KERNEL_TESTS = $(patsubst %,tests/kernels/test_%.py,contract extremes half_precision info_nce_loss instruction_sets \
    linear_swapped_prediction_loss log_dot_product_loss multi_crop multi_crop_libraries mutual_information_loss \
    per_view_batch_norm prototype_scores self_distillation_loss sinkhorn swapped_prediction_loss transport_plan)
LOWER_INSTRUCTION_SETS = $$($(BIN)/python -c 'from imc_kernels import native; print(*native.module("_cpu").instruction_sets()[:-1])')

# Below amx only the kernels made of matrix products are others than make test's: setup.py, AMX_KERNELS.
test-instruction-sets: .venv/installed
	lower="$(LOWER_INSTRUCTION_SETS)" || exit 1; for set in $$lower; do echo "IMC_CPU_CAPABILITY=$$set"; \
	    only="not cuda and not triton"; \
	    test $$set != avx512 || only="$$only and (info_nce or linear_swapped or mutual_information or prototype_scores)"; \
	    IMC_CPU_CAPABILITY=$$set $(BIN)/pytest -q $(KERNEL_TESTS) -k "$$only" $(PARALLEL) $(ARGS) || exit 1; done

bench: .venv/installed
	$(BIN)/pytest --benchmark-only $(ARGS)

build/sanitize/built: .venv/requirements setup.py $(SOURCES)
	IMC_BUILD_CUDA=0 IMC_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
	    --build-base build/sanitize --build-lib build/sanitize/lib
	touch $@

ASAN = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0
SANITIZED = cd build/sanitize && $(ASAN) PYTHONPATH=lib ../../$(BIN)/pytest -p no:cacheprovider

# Left out: torch.compile, whose compilers would be instrumented too; Triton, which has no native code here; and the tests
# that measure or fill the memory, or start processes.
sanitize: build/sanitize/built
	$(SANITIZED) ../../tests/kernels --ignore ../../tests/kernels/test_torch_integration.py \
	    --ignore ../../tests/kernels/test_large.py --ignore ../../tests/kernels/test_memory.py \
	    --ignore ../../tests/kernels/test_threads_and_processes.py --ignore ../../tests/kernels/test_instruction_sets.py \
	    --ignore ../../tests/kernels/test_fake_gpu.py \
	    -k "not test_memory_is_linear and not triton" $(PARALLEL) $(ARGS)

build/sanitize-threads/built: .venv/requirements setup.py $(SOURCES)
	IMC_BUILD_CUDA=0 IMC_SANITIZE=thread $(BIN)/python setup.py --quiet build \
	    --build-base build/sanitize-threads --build-lib build/sanitize-threads/lib
	touch $@

# Without random addresses, of which ThreadSanitizer takes only so many.
sanitize-threads: build/sanitize-threads/built
	cd build/sanitize-threads && LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" \
	    TSAN_OPTIONS="halt_on_error=1 suppressions=$(CURDIR)/tests/kernels/races.suppressions" \
	    PYTHONPATH=lib setarch -R ../../$(BIN)/pytest -p no:cacheprovider ../../tests/kernels/races.py $(ARGS)

# FAULTS="rank_killed disk_full": only these; tests/torture/__main__.py has all names.
torture: .venv/installed
	cd tests && ../$(BIN)/python -m torture $(FAULTS) --write

fuzz: export IMC_FUZZ_EXAMPLES ?= 1000
fuzz: build/sanitize/built .venv/installed
	$(SANITIZED) ../../tests/kernels/test_fuzzed_calls.py $(ARGS)
	$(BIN)/pytest tests/train/data/test_fuzz.py $(ARGS)

SANITIZERS := address,undefined

build/simt/built build/simt-sanitize/built: .venv/requirements setup.py $(SOURCES)
	IMC_BUILD_CPU=0 IMC_BUILD_CUDA=simt IMC_SANITIZE=$(if $(findstring sanitize,$@),$(SANITIZERS)) \
	    $(BIN)/python setup.py --quiet build --build-base $(@D) --build-lib $(@D)/lib
	touch $@

SIMT = PYTHONPATH=lib ../../$(BIN)/pytest -p no:cacheprovider $(PARALLEL) -k cuda \
    ../../tests/kernels/test_contract.py ../../tests/kernels/test_limits.py \
    ../../tests/kernels/test_autograd.py ../../tests/kernels/test_tracing.py \
    ../../tests/kernels/test_multi_crop_gpu_backends.py ../../tests/kernels/test_native_boundary.py \
    ../../tests/gpu/test_agreement.py

# The sanitizers leave out what measures time, and the largest of the sizes.
WITHOUT_LONGEST = "cuda and not call_costs and not B700"

simt: build/simt/built build/simt-sanitize/built
	cd build/simt && $(SIMT) ../../tests/kernels/test_cuda.py ../../tests/kernels/test_distributed.py $(ARGS)
	cd build/simt-sanitize && $(ASAN) $(SIMT) ../../tests/kernels/test_cuda.py -k $(WITHOUT_LONGEST) $(ARGS)

# No network and no .venv: torch, triton, pybind11, ninja, pytest and pytest-benchmark are there already.
GPU_TESTS = -m pytest -q -p no:cacheprovider tests/gpu tests/kernels -k "cuda or triton"
gpu-check:
	IMC_BUILD_CUDA=1 $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps .
	$(PYTHON) -m imc_kernels
	$(PYTHON) $(GPU_TESTS)
	if command -v compute-sanitizer; then for tool in memcheck racecheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 9 $(PYTHON) -m pytest -q tests/gpu -k "cuda and specification" \
	    || exit 1; done; else echo "compute-sanitizer is not installed: memcheck and racecheck are left out"; fi
	$(PYTHON) benchmarks/gpu_report.py

# BUDGET=300: seconds, by default 480. Each part's output lies under benchmarks/results/<gpu>/.
gpu-check-quick:
	$(PYTHON) benchmarks/gpu_quick.py $(if $(BUDGET),--budget $(BUDGET))

DOCUMENTED := imc_kernels imc.estimator imc.train imc.config imc.data
docs: .venv/installed
	$(BIN)/python -W error -m pdoc --docformat google --no-search --output-directory build/docs $(DOCUMENTED)

lint: .venv/requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dev: .venv/requirements
	$(BIN)/pip install --quiet --editable .
	touch .venv/installed

.venv/requirements: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed: .venv/requirements setup.py pyproject.toml $(SOURCES)
	rm -rf build/bdist.* build/lib* build/temp.*  # not what the sanitizers and the emulator built
	$(BIN)/pip install --quiet .
	touch $@

clean:
	rm -rf .venv build imc_kernels.egg-info imc_kernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
