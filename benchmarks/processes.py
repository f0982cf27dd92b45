"""A command's time and peak memory, for the benchmarks that run the real command line."""

import json
import subprocess
import sys
from collections.abc import Sequence

# A process's peak counts from before its exec, so a small process has to start it.
_LAUNCH = """
import json, os, sys, time

def anonymous():
    try:
        lines = open(f"/proc/{process}/status").read().splitlines()
    except OSError:
        return 0
    return max((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), default=0)

start, own = time.perf_counter(), 0
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
while True:
    own = max(own, anonymous())
    ended, status, used = os.wait4(process, os.WNOHANG)
    if ended:
        break
    time.sleep(0.02)
took = {"seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime}
print(json.dumps({**took, "peak_mb": used.ru_maxrss / 1024, "own_peak_mb": own / 1024, "status": status}))
"""


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Runs a dcsft command in a new process.

    Returns:
        seconds on the wall clock, cpu_seconds, peak_mb (resident memory in MB, pages of mapped files
        included, as the kernel counts it) and own_peak_mb (without them, looked at 50 times a second).

    Raises:
        SystemExit: it failed; what it said stands above.
    """
    command = [sys.executable, "-S", "-c", _LAUNCH, sys.executable, "-m", "dcsft_harness.cli", *arguments]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])  # after the command's own output
    if found.pop("status"):
        raise SystemExit(f"dcsft {' '.join(arguments)} failed")
    return {name: round(value, 2) for name, value in found.items()}
