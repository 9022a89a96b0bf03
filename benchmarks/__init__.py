"""Speed of fastseg next to its peers: `python -m benchmarks [op ...]`, see docs/performance.md.

`benchmarks/<op>.py` holds the cases of an op; `benchmarks/harness/` times and reports them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# `python -m` puts the working directory first in the path. A source tree in which the extension
# was not built must not hide the package that pip installed.
if not any((ROOT / "fastseg").glob("_C.*.so")):
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
