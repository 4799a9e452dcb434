"""Write the pages that ``check.mjs`` checks, of odd studies: ``python tools/browser/pages.py FOLDER``.

``tests/report`` must be on ``PYTHONPATH``; its name will not do, for a package ``tests`` may be installed.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from test_odd_studies import STUDIES, page_of


def main(folder: Path) -> None:
    """Write one page a study and print their paths."""
    for name, frame in STUDIES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fonts that lack a letter
            page, _ = page_of(frame)
        place = folder / name.replace(" ", "-") / "report.html"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(page, encoding="utf-8")
        print(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
