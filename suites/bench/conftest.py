"""Options of the benchmarks."""

import time

import pytest
import torch

BEGAN = time.monotonic()


def pytest_addoption(parser):
    group = parser.getgroup("teleport-bench")
    group.addoption("--device", default="auto", help="auto (default), cpu or cuda")
    group.addoption("--seconds", type=float, help="skip what is left after so many seconds")
    group.addoption("--scale", default="full", choices=("full", "small"), help="small: a few KiB")


def pytest_configure(config):
    # what only shows that all works shares its cores with tests
    if config.getoption("--scale") == "small":
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda, but torch sees no CUDA device", returncode=2)
    return torch.device(name)


@pytest.fixture(scope="session")
def scale(request):
    return request.config.getoption("--scale")


def pytest_runtest_setup(item):
    limit = item.config.getoption("--seconds")
    if limit is not None and time.monotonic() - BEGAN > limit:
        pytest.skip(f"{limit:g} seconds are over")


def pytest_benchmark_update_machine_info(config, machine_info):
    """What pytest-benchmark does not see by itself; a machine's name says nothing to others."""
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    cuda = torch.cuda.is_available() and config.getoption("--device") != "cpu"
    machine_info["gpu"] = torch.cuda.get_device_name() if cuda else None
    machine_info["cuda"] = torch.version.cuda if cuda else None
    machine_info["capability"] = torch.cuda.get_device_capability() if cuda else None
