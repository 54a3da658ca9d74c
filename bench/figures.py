"""Writes bench/figures.json: the figures of README.md that come from benches, as those print them.

Example: scripts/env.sh python bench/figures.py
"""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
FIGURES = {
    "attention_overhead.py": ("kernels_per_layer", "aten_per_layer", "copies_per_step"),
    "requeue.py": ("encoder_calls_after_change",),
    "resident_memory.py": ("sd15_plus_bytes", "sdxl_vit_h_bytes", "sdxl_plus_bytes"),
}


def measured(bench: str) -> dict[str, float]:
    """What a bench prints under the names that are wanted of it."""
    done = subprocess.run([sys.executable, str(FOLDER / bench)], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {name: result[name] for name in FIGURES[bench]}


if __name__ == "__main__":
    text = json.dumps({bench: measured(bench) for bench in FIGURES}, indent=2)
    (FOLDER / "figures.json").write_text(f"{text}\n", encoding="utf-8")
    print(text)
