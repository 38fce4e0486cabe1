"""60 mutated tables and 60 mutated model files from a fixed seed: each ends in a result or in one line.

One process reads them all. It reports how long each takes, its peak memory, and any child process, connection, or file
that is opened for writing outside its folder. It stops itself if a file takes too long.
"""

import contextlib
import csv
import faulthandler
import io
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="requires resource limits")]

# A sound file takes at most a second; the machines of CI are shared.
MAX_SECONDS = 60
# In KiB, beyond what the process needs for sound files. The largest file has 2.4 MB.
MAX_GROWTH = 1_000_000
COPIES = 15
# What an attacker writes into an entry of JSON, or a cell.
VALUES = [
    *(None, True, -1, 0, 1.5, 10**12, 10**30, 1e300, float("nan"), float("inf"), "", "x", "1e400", "\x1b[31mred\r\n"),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "http://127.0.0.1:9/x.jpg",
        "timm:hf-hub:evil/evil",
        "\ud800",
        "\x00",
        "a" * 5000,
    ),
    *([], {}, [[[[[[1]]]]]], {"a": {"b": {"c": 1}}}, [10**9] * 3, list(range(3000))),
]
NUMBERS = [b"\x00" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x80" * 10 + b"\x01"]


def damage(random, content, start):
    """Return bytes with up to four changes: half of them in the first ``start`` bytes, where the structure is.

    In half of the files no change moves the bytes after it, which would make most of them unreadable at once.
    """
    content = bytearray(content)
    kinds = random.choice([2, 5])
    for _ in range(random.randint(1, 4)):
        place = random.randrange(min(start, len(content)) if random.random() < 0.5 else len(content))
        match random.randrange(kinds):
            case 0:
                content[place] ^= 1 << random.randrange(8)
            case 1:
                content[place : place + 8] = random.choice(NUMBERS)
            case 2:
                del content[place : place + random.randint(1, 64)]
            case 3:
                content[place:place] = content[place : place + random.randint(1, 200)]
            case 4:
                content = content[: max(1, place)] if random.random() < 0.2 else content
                content[place:place] = b"[" * random.choice([1, 100, 100_000])
    return bytes(content)


def edit(random, value):
    """Return parsed JSON with one entry, at any depth, replaced, removed or renamed."""
    inner = [key for key, one in value.items() if isinstance(one, dict) and one]
    if inner and random.random() < 0.7:
        key = random.choice(inner)
        return {**value, key: edit(random, value[key])}
    key = random.choice([*value])
    match random.randrange(6):
        case 0:
            return {name: one for name, one in value.items() if name != key}
        case 1:
            return {(f"{name}\x1b" if name == key else name): one for name, one in value.items()}
    return {**value, key: random.choice(VALUES)}


def write_models(folder, source):
    """Write mutations of a bundled model: bytes and metadata of both formats."""
    import onnx
    from safetensors.numpy import load, save

    weights, exported = source.read_bytes(), onnx.load(source.with_suffix(".onnx"))
    metadata = json.loads(exported.metadata_props[0].value)
    # Without its checksum, as in files of older versions, a mutation is not refused at once.
    del exported.metadata_props[1:]
    plain, tensors = exported.SerializeToString(), load(weights)
    for number in range(COPIES):
        chance = random.Random(f"models {number}")
        (folder / f"bytes-{number}.safetensors").write_bytes(damage(chance, weights, 10_000))
        (folder / f"bytes-{number}.onnx").write_bytes(damage(chance, plain, 10_000))
        text = json.dumps(edit(chance, metadata))
        (folder / f"metadata-{number}.safetensors").write_bytes(save(tensors, {"agegen": text}))
        exported.metadata_props[0].value = text
        (folder / f"metadata-{number}.onnx").write_bytes(exported.SerializeToString())


def write_tables(folder):
    """Write mutations of a table of six faces: CSV, JSON Lines, and Parquet with pandas' metadata."""
    import pandas as pd

    from agegen.data.demo import draw_records

    (folder / "faces").mkdir()
    records, rows = draw_records(6), []
    for row in records.frame.itertuples():
        path = f"faces/{row.Index}.png"
        (folder / path).write_bytes(records.read(row.Index))
        rows.append({"path": path, "age": int(row.age), "gender": int(row.female), "note": {"source": "drawn"}})
    frame = pd.DataFrame(rows).drop(columns="note")
    frame.to_parquet(folder / "sound.parquet")
    sound = (folder / "sound.parquet").read_bytes(), frame.to_csv(index=False).encode()
    for number in range(COPIES):
        chance = random.Random(f"tables {number}")
        # The structure of Parquet is at the end.
        (folder / f"{number}.parquet").write_bytes(damage(chance, sound[0][::-1], 2000)[::-1])
        (folder / f"{number}.csv").write_bytes(damage(chance, sound[1], 60))
        cells = [[chance.choice([*map(str, VALUES), *map(str, row.values())]) for _ in range(3)] for row in rows]
        text = io.StringIO(frame.to_csv(index=False))
        text.seek(0, os.SEEK_END)
        csv.writer(text).writerows(cells)
        (folder / f"cells-{number}.csv").write_bytes(text.getvalue().encode(errors="surrogatepass"))
        lines = [json.dumps(edit(chance, row) if chance.random() < 0.5 else row) for row in rows]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    (folder / "sound.parquet").unlink()


def watch(folder):
    """Print what the process must not do, from now on."""

    def report(event, arguments):
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"):
            print(json.dumps({"forbidden": f"{event} {arguments}"}), flush=True)
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, _, flags = arguments
            inside = Path(os.fsdecode(path)).resolve().is_relative_to(folder)
            if flags & (os.O_WRONLY | os.O_RDWR) and not inside and os.fsdecode(path) != os.devnull:
                print(json.dumps({"forbidden": f"write {os.fsdecode(path)!r}"}), flush=True)

    sys.addaudithook(report)


def work(folder):
    """Read every file of a folder with the command line, and print a line of JSON about each."""
    from typer.testing import CliRunner

    from agegen.cli.app import app

    def run(*words):
        return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "160"})

    face = next(folder.glob("*/faces/*.png"))
    run("predict", face, "--no-detect", "--engine", "torch", "--jsonl", "-")
    watch(folder)
    for path in sorted([*folder.glob("models/*"), *folder.glob("tables/*.*")]):
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        table = path.parent.name == "tables"
        done = (
            run("data", "check", path) if table else run("predict", face, "--no-detect", "--run", path, "--jsonl", "-")
        )
        faulthandler.cancel_dump_traceback_later()
        crash = None if isinstance(done.exception, SystemExit | None) else repr(done.exception)[:300]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        facts = {"file": path.name, "crash": crash, "code": done.exit_code, "error": done.stderr, "peak": peak}
        print(json.dumps(facts), flush=True)


def judge(facts):
    """Return what is wrong with how a file ended, or None."""
    if facts["crash"]:
        return f"{facts['file']}: {facts['crash']}"
    lines = [line for line in facts["error"].splitlines() if line.startswith("error: ")]
    if facts["code"] not in (0, 1) or (facts["code"] == 1 and len(lines) > 1) or "Traceback" in facts["error"]:
        return f"{facts['file']}: exit code {facts['code']}, {facts['error']!r}"
    if not all(letter.isprintable() or letter == "\n" for letter in facts["error"]):
        return f"{facts['file']}: control characters in {facts['error']!r}"
    return None


def test_mutated_tables_and_model_files_end_in_a_result_or_one_line(tmp_path):
    from agegen.model.weights import find_weights

    for name in ("models", "tables", "tmp"):
        (tmp_path / name).mkdir()
    write_models(tmp_path / "models", find_weights("compact"))
    write_tables(tmp_path / "tables")
    assert len([*tmp_path.glob("models/*"), *tmp_path.glob("tables/*.*")]) == 8 * COPIES
    places = {name: str(tmp_path / "tmp") for name in ("TMPDIR", "HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=False)
    facts = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            facts.append(json.loads(line))
    ended = [one for one in facts if "file" in one]
    assert len(ended) == 8 * COPIES, f"stopped after {ended[-1:]}: {done.stderr[-3000:]}"
    assert [one for one in facts if "forbidden" in one] == []
    assert [problem for problem in map(judge, ended) if problem] == []
    assert max(one["peak"] for one in ended) - ended[0]["peak"] < MAX_GROWTH
    codes = [one["code"] for one in ended]
    # Some mutations harm nothing, and most are noticed.
    assert codes.count(0) > 10 and codes.count(1) > 50


if __name__ == "__main__":
    work(Path(sys.argv[1]).resolve())
