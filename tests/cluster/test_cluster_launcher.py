"""The files for ``ray up``, by the check that ``ray up`` makes, and the rules of ours."""

from __future__ import annotations

import copy
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from xmodal_dist.version import __version__

SPOT = {"aws": "{'MarketType': 'spot'}", "gcp": "'provisioningModel': 'SPOT'"}


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_it(cluster_files: Path, cloud: str) -> None:
    config = yaml.safe_load((cluster_files / "launcher" / f"{cloud}.yaml").read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["provider"]["type"] == cloud
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "max_wrokers": 3})


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_workers_are_spot_ports_stay_closed_and_the_token_is_asked_for(
    cluster_files: Path, cloud: str
) -> None:
    config = yaml.safe_load((cluster_files / "launcher" / f"{cloud}.yaml").read_text())
    types = config["available_node_types"]
    assert set(types) == {config["head_node_type"], "cpu", "gpu"}
    assert all((SPOT[cloud] in str(types[name]["node_config"])) == (name != "head") for name in types)
    assert sum(types[name]["max_workers"] for name in ("cpu", "gpu")) <= config["max_workers"]
    assert config["docker"]["image"].endswith(f"/xmodal-dist:{__version__}")
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in (command for command in starts if "ray start" in command):
        assert command.startswith("export RAY_AUTH_MODE=token;")
    assert "--dashboard-host=127.0.0.1" in starts[1], "the dashboard is reached through SSH"
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
