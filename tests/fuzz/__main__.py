"""Coverage-guided fuzzing: ``python -m tests.fuzz [--seconds N] [--target NAME] [--seed N]``.

Each target runs in a process of its own, under atheris (libFuzzer with the coverage of Python code; Apache License
2.0), for a bounded time and from a seed that is told, so that a run can be repeated. The exit code is 0 if nothing was
found, 1 if something was; the input is then kept in a file whose path is printed, and belongs into
``tests/fuzz/inputs/TARGET`` with the repair. Without atheris the exit code is 2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

INPUTS = Path(__file__).parent / "inputs"
NAMES = ("multipart", "uri", "content-type", "part10", "json")
_TOO_LONG = 10  # seconds for one input: a parser that takes longer hangs


def main() -> int:
    """Runs the targets, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing of the parsers.")
    parser.add_argument("--seconds", type=int, default=25, help="for each target (default: %(default)s)")
    parser.add_argument("--target", choices=NAMES, action="append", help="by default all, one after the other")
    parser.add_argument("--seed", type=int, default=1, help="where chance begins (default: %(default)s)")
    parser.add_argument(
        "--keep", metavar="DIRECTORY", help="where inputs go that are found; by default a temporary one"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris: pip install atheris", file=sys.stderr)
        return 2
    kept = Path(options.keep or tempfile.mkdtemp(prefix="dicomweb_io-fuzz-"))
    found = [name for name in options.target or NAMES if not _run(name, options.seconds, options.seed, kept)]
    for name in found:
        print(f"{name}: FOUND SOMETHING (seed {options.seed}); the input is in {kept}")
    print(f"{len(options.target or NAMES) - len(found)} targets found nothing, {len(found)} found something")
    return 1 if found else 0


def _run(name: str, seconds: int, seed: int, kept: Path) -> bool:
    from tests.fuzz.targets import TARGETS

    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dicomweb_io-corpus-") as corpus:
        known = [path.read_bytes() for path in sorted((INPUTS / name).glob("*"))]
        for content in [*TARGETS[name].seeds(), *known]:
            Path(corpus, hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
        command = [sys.executable, "-m", "tests.fuzz.runner", name, corpus]
        command += [f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={_TOO_LONG}", "-max_len=2048"]
        command += ["-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={kept}/{name}-"]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=seconds + 20 * _TOO_LONG, check=False)
        except subprocess.TimeoutExpired as error:
            print(f"{name}: did not end", (error.stderr or b"").decode("utf-8", "replace")[-4000:], sep="\n")
            return False
    told = ended.stderr.decode("utf-8", "replace")
    if ended.returncode:
        print(ended.stdout.decode("utf-8", "replace")[-4000:], told[-6000:], sep="\n")
        return False
    runs = next((line.split()[-1] for line in told.splitlines() if "number_of_executed_units" in line), "?")
    print(f"{name}: nothing found in {runs} inputs", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
