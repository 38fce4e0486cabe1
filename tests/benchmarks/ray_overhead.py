"""Time ``agegen predict --parquet`` in one process and with Ray on the same machine, for increasing numbers of crops.

    python tests/benchmarks/ray_overhead.py --data data/utkface [--counts 1000 10000 100000] [--rounds 3]

The data must be aligned crops. They are written to Parquet, 1,000 per row group, repeated if there are too few.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

GROUP = 1000


def write_table(data: Path, count: int, target: Path) -> None:
    paths = sorted(data.glob("*.jpg"))
    schema = pa.schema([("path", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(target, schema, compression="none") as writer:
        for start in range(0, count, GROUP):
            rows = range(start, min(start + GROUP, count))
            contents = [paths[row % len(paths)].read_bytes() for row in rows]
            writer.write_table(pa.table([[f"{row}.jpg" for row in rows], contents], schema), row_group_size=GROUP)


def predict(table: Path, out: Path, *words: str) -> float:
    """Return the run time of the command in seconds; checks that each image has one row."""
    command = [sys.executable, "-m", "agegen", "predict", table, "--no-detect", "--parquet", out, *words]
    started = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    seconds = time.monotonic() - started
    names = pyarrow.dataset.dataset(out).to_table(columns=["file"])["file"]
    assert len(names) == len(names.unique()) == pq.read_metadata(table).num_rows
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for count in options.counts:
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "crops.parquet"
            write_table(options.data, count, table)
            taken: dict[str, list[float]] = {"one process": [], "Ray": []}
            for number in range(options.rounds if count < 100_000 else 1):
                taken["one process"].append(predict(table, Path(scratch) / f"process-{number}"))
                taken["Ray"].append(predict(table, Path(scratch) / f"ray-{number}", "--cluster", "local"))
        for name, seconds in taken.items():
            median = statistics.median(seconds)
            print(f"{count:>7,} crops, {name:11}: {median:.1f} s, {count / median:,.0f}/s", flush=True)


if __name__ == "__main__":
    main()
