"""Over fifty kills of workers and drivers that share one output: nothing is lost, doubled or damaged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faulty_proxy import FaultyProxy
from tests.s3_servers import environment_of, moto_server, seaweed_server, use_s3
from tests.score.bundles import save_tiny_bundle, train_records
from tests.score.storm import rage
from xmodal_dist.score import ledger
from xmodal_dist.score.verify import verify_scoring

UNITS = 200
MIN_KILLS = 50


@pytest.fixture(scope="module")
def prepared(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A bundle, and 1,000 records in 200 row groups, every twentieth picture cut off."""
    folder = tmp_path_factory.mktemp("storm")
    bundle = save_tiny_bundle(tiny_dataset, folder / "bundle")
    records = pa.concat_tables([train_records(tiny_dataset)] * 9).slice(0, UNITS * 5)
    pictures = records.column("picture").to_pylist()
    pictures = [p[:40] if p is not None and i % 20 == 0 else p for i, p in enumerate(pictures)]
    columns = {"id": [f"r{i}" for i in range(UNITS * 5)], "picture": pictures}
    for name, values in columns.items():
        place = records.column_names.index(name)
        records = records.set_column(place, name, pa.array(values, records.schema.field(name).type))
    pq.write_table(records, folder / "in.parquet", row_group_size=5)
    return bundle, str(folder / "in.parquet")


@pytest.mark.slow
@pytest.mark.soak
def test_a_storm_over_a_local_disk(prepared: tuple[str, str], tmp_path: Path) -> None:
    bundle, source = prepared
    output = str(tmp_path / "out")
    storm = rage(bundle, source, output, folder=tmp_path, min_kills=MIN_KILLS)
    assert storm.kills >= MIN_KILLS and storm.driver_kills and storm.frozen
    _assert_whole(output, source)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("moto", marks=pytest.mark.soak), "seaweed"])
def test_a_storm_over_an_object_store_that_fails(
    prepared: tuple[str, str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the kills: bursts of refused requests, and replies that get lost after the store has done its part."""
    bundle, source = prepared
    (tmp_path / "weed").mkdir()
    with (
        moto_server() if kind == "moto" else seaweed_server(tmp_path / "weed") as server,
        FaultyProxy(server, share_503=0.005, share_lost=0.01) as proxy,
    ):
        with use_s3(proxy.url, monkeypatch) as root:
            output = f"{root}/out"
            storm = rage(
                bundle,
                source,
                output,
                folder=tmp_path,
                min_kills=MIN_KILLS,
                environment=environment_of(proxy.url),
            )
        assert storm.kills >= MIN_KILLS and storm.driver_kills and storm.frozen
        assert proxy.refused and proxy.lost
        with use_s3(server, monkeypatch):
            _assert_whole(output, source)


def _assert_whole(output: str, source: str) -> None:
    manifest = ledger.load_manifest(output)
    assert manifest is not None and manifest.rows_in == UNITS * 5
    assert verify_scoring(output, reread_input=True) == (0, 0, [])
    scored = ledger.read_predictions(output).column("id").to_pylist()
    files = ledger.load_files(output, manifest).to_pylist()
    rejected = [
        row["id"]
        for file in files
        if file["role"] == "quarantine"
        for row in _read(output, file["path"]).to_pylist()
    ]
    assert 20 < len(rejected) == manifest.rows_bad
    assert sorted(scored + rejected) == sorted(pq.read_table(source, columns=["id"])["id"].to_pylist())


def _read(output: str, path: str) -> pa.Table:
    from xmodal_dist import storage

    return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(output, path))))
