"""What all tests share: the host, a small model and adapter in it, and one thread per test process (two processes fill two cores)."""

from __future__ import annotations

import pytest
import torch

from testbed.host import import_host

torch.set_num_threads(1)
import_host()  # before anything imports the pack


@pytest.fixture(scope="module")
def model():
    """A small SD1.5-topology model of the host."""
    from testbed.host_model import host_model  # not in the process that only collects: the host prints when it is imported

    return host_model()


@pytest.fixture(scope="module")
def adapter():
    """A small adapter whose ports all do something."""
    from testbed.small_adapter import random_adapter

    return random_adapter()
