"""Claim: `covector --help` and `import covector` take under 0.3 s and load neither torch nor transformers.

Fresh processes, page cache warm, taking turns with a bare interpreter; user and system time of each, so that busy
neighbours do not count (time on the clock, which they do lengthen, is printed beside it). `numbers` is what any command
that computes has to load first: NumPy and SciPy's linear algebra, shown without a claim.

Exits with 1 when a median misses or a heavy library was loaded. Target: 0.2 s.
"""

import os
import platform
import subprocess
import sys
import time
from statistics import median

ROUNDS, LIMIT, TARGET = 9, 0.3, 0.2
HELP = "import sys; from covector.cli.main import run; sys.argv[1:] = ['--help']; run(['--help'])"
PROGRAMS = {
    "bare": ("-c", "pass"),
    "import": ("-c", "import covector"),
    "help": ("-m", "covector", "--help"),
    "numbers": ("-c", "import numpy, scipy.linalg"),
}
HEAVY = ("torch", "transformers", "tensorflow", "jax")


def seconds(words: tuple[str, ...]) -> tuple[float, float]:
    """(processor time, time on the clock) of an interpreter that runs these words."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


def loaded(program: str) -> list[str]:
    """Heavy libraries that a program leaves loaded."""
    asked = f"{program}\nimport sys; print('loaded', *[n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stderr.split()
    assert told[:1] == ["loaded"], "the program ended before it could be asked"
    return told[1:]


def main() -> int:
    heavy = {"import": loaded("import covector"), "help": loaded(HELP)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for words in PROGRAMS.values():
        seconds(words)
    for _ in range(ROUNDS):
        for name, words in PROGRAMS.items():
            times[name].append(seconds(words))
    print(f"{platform.machine()}, Python {platform.python_version()}, processor time, {ROUNDS} rounds")
    failed = False
    for name, found in times.items():
        used, clock = (median(values) for values in zip(*found, strict=True))
        claimed = ""
        if name in heavy:
            failed |= used > LIMIT or bool(heavy[name])
            claimed = f", {used / LIMIT:.2f} of the limit of {LIMIT} s (target {TARGET}), heavy libraries: "
            claimed += ", ".join(heavy[name]) or "none"
        print(f"  {name:8s}{used:.3f} s ({clock:.3f} s on the clock){claimed}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
