"""One thread per test process: two processes fill two cores, and many small operations do not wait for each other."""

from __future__ import annotations

import torch

from testbed.host import import_host

torch.set_num_threads(1)
import_host()  # before anything imports the pack
