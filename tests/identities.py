"""Print which identities of the theory pages the tests state, and which are missing: `make identities`."""

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Identities of the theory that this version claims: SV-n of the singular-vector page, OP-n of the observables page.
CLAIMED = [
    *(f"SV-{n}" for n in range(1, 41)),
    *(f"OP-{n}" for n in range(1, 32)),
]


def marked() -> dict[str, list[str]]:
    """Identity → tests that carry its mark, read from the sources."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("mark.identity"):
                    for name in (ast.literal_eval(a) for a in mark.args):
                        found.setdefault(name, []).append(f"{path.relative_to(HERE)}::{node.name}")
    return found


def main() -> int:
    """List them; exit 1 when a claimed identity has no test."""
    found = marked()
    missing = [name for name in CLAIMED if name not in found]
    for name in sorted(found, key=lambda n: (n[:2], int(re.sub(r"\D", "", n)))):
        sys.stdout.write(f"{name:6} {len(found[name]):2} tests  {found[name][0]}\n")
    sys.stdout.write(f"{len(CLAIMED) - len(missing)} of {len(CLAIMED)} claimed identities have tests")
    sys.stdout.write(f"; missing: {', '.join(missing)}\n" if missing else "\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
