"""What pip has to install: names of extras in, the requirements that setup.cfg gives them out.

The tests' environment holds these and not the project itself: it imports `unwind` from the tree.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements(*extras: str) -> list[str]:
    """The project's own requirements and those of `extras`, without repetition."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"]]
    lists += [setup["options.extras_require"][extra] for extra in extras]
    return sorted({line.strip() for text in lists for line in text.splitlines() if line.strip()})


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
