.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ros test-numpy1 test-fast eval-tiny replay-sample bench-memory bench-growth bench-score bench-half bench-efficiency bench-gpu bench-bag bench-node bench-network bench-pool soak soak-network lint check format clean

# The OpenMP threads of a waiting process must not keep the cores busy.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

MIRAGE = .venv/bin/python -m mirage_model.cli

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## environment in .venv and ROS interfaces; nothing to do when they are up to date
	@scripts/setup.sh

# ENGINE=remote generates on a server that is started too, with mutual TLS
PLACE = $(if $(filter remote,$(ENGINE)),--engine server)

demo: setup  ## imagine along a path in a simulated world, over ROS 2; SCENE=house in a house; ENGINE=remote by a server; writes out/demo/
	@.venv/bin/mirage_demo --out out/demo $(if $(SCENE),--scene $(SCENE)) $(PLACE)

# shapes are checked in the first run; the quick tests run on numpy 1.26 as users run the code, where the ROS tests wait
test:  ## the whole suite, then its quick part on numpy 1.26, style and types
	@scripts/setup.sh tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --ignore=tests/ros -n auto --dist loadfile
	scripts/beside.sh out/test-beside.log make --no-print-directory check test-numpy1 -- make --no-print-directory test-ros

test-ros:
	.venv/bin/python -m pytest tests/ros -m 'not alone' -n 2 --dist loadfile
	.venv/bin/python -m pytest tests/ros -m alone

test-numpy1:
	OMP_NUM_THREADS=1 JAXTYPING_DISABLE=1 .venv-numpy1/bin/python -m pytest -m 'not slow' --ignore=tests/ros -n auto --dist loadfile

eval-tiny: setup  ## mirage-tiny and baselines on held-out maps and houses, on RGB-D frames in OFFICE, beside weights in BEFORE; writes out/eval/
	$(MIRAGE) evaluate tiny $(if $(OFFICE),--office $(OFFICE)) $(if $(BEFORE),--before $(BEFORE))

REPLAY = out/replay/sample --config config/replay_sample.yaml

replay-sample: setup  ## a sample bag, replayed from the file and through the node: equal metrics; writes out/replay/
	$(MIRAGE) report sample-bag --out out/replay/sample
	$(MIRAGE) replay $(REPLAY) --out out/replay/file
	.venv/bin/python -m mirage_ros.tools.replay $(REPLAY) --out out/replay/node $(PLACE)
	$(MIRAGE) report compare out/replay/file out/replay/node

bench-memory: setup  ## how fast the memory is, against its goals; writes out/bench/memory.json
	$(MIRAGE) bench memory

bench-score: setup  ## how fast and how right the coarse coverage of candidates is; writes out/bench/score.json
	$(MIRAGE) bench score

bench-half: setup  ## what half the resolution of candidates costs and gives, on validation maps; writes out/bench/half.json
	$(MIRAGE) bench half-resolution

bench-growth: setup  ## how much the memory grows, against its goals; writes out/bench/growth.json
	$(MIRAGE) bench growth

soak: setup  ## 2,000 writes and reads under a cap, then three clients and a robot against a node for ten minutes; writes out/bench/soak.json, out/soak/summary.json
	$(MIRAGE) bench soak
	$(MIRAGE) bench node-soak

bench-gpu: setup  ## a chunk of Wan2.2-TI2V-5B's size on one GPU, random weights, options on and off; writes out/bench/gpu.json
	$(MIRAGE) bench gpu

bench-node: setup  ## what the node itself costs a frame of 704x1280 and a score, its first request and its tenth; writes out/bench/node.json
	$(MIRAGE) bench node

soak-network: setup  ## three robots and one server for ten minutes, SLOW=1 with latency and stalls; writes out/bench/network_soak.json
	$(MIRAGE) bench network-soak $(if $(SLOW),--delay-ms 20 --loss 0.01)

bench-bag: setup  ## what reading recordings of 1, 10 and 60 minutes costs a picture; writes out/bench/bag.json
	$(MIRAGE) bench bag

bench-network: setup  ## what an engine on a server costs over loopback, beside the same in process; writes out/bench/network.json
	$(MIRAGE) bench network

bench-pool: setup  ## what the front of a pool costs from 1 to 200 robots, with two engines on this machine; writes out/bench/pool.json
	$(MIRAGE) bench pool

bench-efficiency: setup  ## what the memories cost, side by side, on a quiet machine and for hours; writes docs/measurements/efficiency.md
	$(MIRAGE) bench efficiency

QUICK_NODE_TESTS = $(addprefix tests/ros/test_,$(addsuffix .py,convert diagnostics parameters sensor_sync throttled_log trajectory transforms))

test-fast: setup  ## what a change breaks first, in three minutes: everything but the tests marked slow
	OMP_NUM_THREADS=1 JAXTYPING_DISABLE=1 .venv/bin/python -m pytest -m 'not slow' --ignore=tests/ros -n auto --dist loadfile
	.venv/bin/python -m pytest $(QUICK_NODE_TESTS)

lint: setup check  ## style, formatting and types

check:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup  ## put the formatting right
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:  ## everything that was built, but not the environment
	rm -rf build install log out dist *.egg-info
