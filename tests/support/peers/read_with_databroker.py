"""A program that reads runs with databroker 1 or 2: `read_with_databroker.py DOCUMENTS IMAGES`.

DOCUMENTS has one line of JSON, [name, document], for each document of the runs. IMAGES (.npz) receives the
images of each run under its uid: (points, images of a point, height, width).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import databroker
import numpy as np

Document = tuple[str, dict[str, Any]]


@contextmanager
def read_with_version_1(documents: list[Document]) -> Iterator[Callable[[str], Any]]:
    """Return a function that reads the primary stream of a run."""
    from databroker.v2 import temp

    catalog = temp()
    for name, doc in documents:
        catalog.v1.insert(name, doc)
    yield lambda uid: catalog[uid].primary.read()


@contextmanager
def read_with_version_2(documents: list[Document]) -> Iterator[Callable[[str], Any]]:
    """Return a function that reads the primary stream of a run through a server in this process."""
    from databroker.mongo_normalized import MongoAdapter
    from tiled.client import from_context
    from tiled.client.context import Context
    from tiled.server.app import build_app

    tree = MongoAdapter.from_mongomock()
    insert = tree.get_serializer()
    for name, doc in documents:
        insert(name, doc)
    with Context.from_app(build_app(tree)) as context:
        client: Any = from_context(context)
        yield lambda uid: client[uid]["primary"].read()


def main(documents_path: str, images_path: str) -> None:
    """Read all runs and store their images."""
    lines = Path(documents_path).read_text().splitlines()
    documents: list[Document] = [(name, doc) for name, doc in map(json.loads, lines)]
    is_1 = databroker.__version__.startswith("1.")
    with (read_with_version_1 if is_1 else read_with_version_2)(documents) as primary:
        uids = [doc["uid"] for name, doc in documents if name == "start"]
        images = {uid: primary(uid)["det_image"].values for uid in uids}
    np.savez(images_path, **images)
    print(f"databroker {databroker.__version__}: {len(images)} runs")


if __name__ == "__main__":
    main(*sys.argv[1:])
