"""Loading an adapter costs at most 1.1 times its size in memory; its weights stay on disk until they are used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.published import nested, tiny_adapter, write_bin, write_safetensors

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
# The peak of this process alone: `ru_maxrss` would include that of the process it was started from.
MEASURE = """
import sys
from pathlib import Path
from ipadapter_core.adapter import load_adapter

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

before = kilobytes("VmRSS")
adapter = load_adapter(Path(sys.argv[1]))
loaded = kilobytes("VmHWM")
assert sum(float(weight.sum()) for weight in adapter.parameters()) == 0
print(loaded - before, kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_loading_peaks_at_the_adapter_s_size(tmp_path: Path, suffix: str) -> None:
    shapes = tiny_adapter("base", site_dims=(3072,) * 8, cross_attention_dim=1024)  # 200 MB
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    path = tmp_path / f"large{suffix}"
    if suffix == ".bin":
        write_bin(path, nested(tensors))
    else:
        write_safetensors(path, tensors)
    size = path.stat().st_size / 1024
    assert size > 190_000
    command = [sys.executable, "-c", MEASURE, str(path)]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    loaded, used = map(int, result.stdout.split())
    path.unlink()
    assert loaded < 0.3 * size
    assert used <= 1.1 * size
