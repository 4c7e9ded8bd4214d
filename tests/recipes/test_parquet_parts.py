"""Tables that are written part by part."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.artifacts import write_parts


def test_parts_keep_types_and_values_and_pack_integers(tmp_path: Path) -> None:
    lists = pa.array([[7, 3], [], [2**40]], pa.list_(pa.int64()))
    times = pa.array([5, None, -5], pa.int64())
    part = pa.table({"lists": lists, "times": times, "split": ["a", "b", "a"], "last": [True] * 3})
    write_parts(tmp_path / "table.parquet", [part, part])
    assert pq.read_table(tmp_path / "table.parquet").equals(pa.concat_tables([part, part]))
    group = pq.read_metadata(tmp_path / "table.parquet").row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    assert {c.path_in_schema: "DELTA_BINARY_PACKED" in c.encodings for c in columns} == {
        "lists.list.element": True,
        "times": True,
        "split": False,
        "last": False,
    }
