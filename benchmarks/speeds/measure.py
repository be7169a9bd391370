"""Time, memory and operations of a call, each measured where nothing else disturbs it.

Times of all contestants come from one process in which they take turns, so that a ratio between
them is one of the same minutes. Memory comes from a process of its own for each contestant.
"""

import gc
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch
from torch.utils import flop_counter

Call = Callable[[], object]


def best_times(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Seconds of the best of some rounds, in which every call has its turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
            gc.collect()
    return best


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def time_and_memory(call: Call) -> dict[str, float]:
    """Seconds of one call, and bytes that the process held at most: in all, and above before."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again
    start = time.perf_counter()
    call()
    seconds, peak = time.perf_counter() - start, _status("VmHWM")
    return {"seconds": seconds, "peak": peak, "above": peak - before}


def in_process(module: str, arguments: Sequence[str], threads: int) -> dict:
    """What a module's command prints in a process of its own: JSON on the last line."""
    command = [sys.executable, "-m", module, *arguments, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def matrix_product_rate(dtype: torch.dtype, device: str = "cpu", size: int = 3072) -> float:
    """Floating-point operations a second in a large matrix product, the best of five.

    On a processor that of the better library: PyTorch multiplies by MKL, or by oneDNN if asked to.
    """
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    products = {"PyTorch": lambda: left @ right}
    if device == "cpu":
        linear = torch.ops.mkldnn._linear_pointwise
        products["oneDNN"] = lambda: linear(left, right, None, "none", [], "none")

    def waiting(product: Call) -> None:
        product()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    calls = {name: partial(waiting, product) for name, product in products.items()}
    return 2 * size**3 / min(best_times(calls, 5).values())


def operations(call: Call) -> int:
    """Floating-point operations of the matrix products and convolutions that PyTorch does.

    A multiplication and an addition count as two.
    """
    aten = torch.ops.aten
    formulas = {
        # not in PyTorch's list: what processors have fused, and a product added in place
        torch.ops.mkldnn._linear_pointwise: _linear_operations,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        aten.baddbmm_: lambda added, left, right, **_: flop_counter.bmm_flop(left, right),
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return counter.get_total_flops()


def _linear_operations(inputs, weight, *_, **__) -> int:
    return 2 * math.prod(inputs) * weight[0]


def _attention_operations(query, key, value, *_, **__) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def machine(threads: int) -> dict[str, object]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return {
        "processor": name,
        "cores": psutil.cpu_count(logical=False),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fp32 matrix products": f"{matrix_product_rate(torch.float32) / 1e9:.0f} GFLOP/s",
        "bf16 matrix products": f"{matrix_product_rate(torch.bfloat16) / 1e9:.0f} GFLOP/s",
    }
