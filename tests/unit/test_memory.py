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
from ipadapter_core.network.adapter import load_adapter

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

before = kilobytes("VmRSS")
peaks = []
for path in sys.argv[1:]:
    adapter = load_adapter(Path(path))
    peaks.append(kilobytes("VmHWM") - before)
for path in sys.argv[1:]:
    del adapter
    adapter = load_adapter(Path(path))
    assert sum(float(weight.sum()) for weight in adapter.parameters()) == 0
    peaks.append(kilobytes("VmHWM") - before)
print(*peaks)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
def test_loading_peaks_at_the_size_of_the_adapter(tmp_path: Path) -> None:
    shapes = tiny_adapter("base", site_dims=(3072,) * 8, cross_attention_dim=1024)  # 200 MB
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    paths = (
        write_safetensors(tmp_path / "a.safetensors", tensors),
        write_bin(tmp_path / "a.bin", nested(tensors)),
    )
    size = min(path.stat().st_size for path in paths) / 1024
    assert size > 190_000
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    for path in paths:
        path.unlink()
    *loaded, safetensors_used, bin_used = map(int, result.stdout.split())
    assert max(loaded) < 0.3 * size
    assert safetensors_used <= 1.1 * size
    assert bin_used <= 1.1 * size
