"""Tiny images in the schema of the hub's CIFAR-10."""

from io import BytesIO

import numpy as np
from PIL import Image


def write_parquet(path, count=40, seed=0):
    """Write random 32 x 32 PNG images, four of each class; return pixels (count, 32, 32, 3)."""
    import pyarrow as pa
    from pyarrow import parquet

    pixels = np.random.default_rng(seed).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    rows = []
    for image in pixels:
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    schema = pa.schema({"img": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    table = pa.Table.from_arrays([pa.array(rows, schema.field("img").type)], schema=schema)
    labels = pa.array([number % 10 for number in range(count)], pa.int64())
    parquet.write_table(table.append_column("label", labels), path)
    return pixels
