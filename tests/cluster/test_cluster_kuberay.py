"""The KubeRay files against the schemas of their kinds, against each other, and against what their namespace allows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from tests.cluster.kustomize import CLUSTER, build
from xmodal_dist.version import __version__

KUBERAY = CLUSTER / "kuberay"
JOBS = ("train", "tune", "score")
STORES = ("store-pvc", "store-s3")
SCHEMAS = Path(os.environ.get("XMODAL_TEST_SCHEMAS", CLUSTER.parents[1] / "shared" / "schemas"))


def _strict(schema: Any) -> Any:
    """The schema, refusing what the API server would drop without a word: fields that a kind does not have."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        strict["additionalProperties"] = False
    return strict


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    found = {}
    for kind, name in (("RayJob", "rayjobs"), ("RayCluster", "rayclusters")):
        file = SCHEMAS / f"ray.io_{name}.yaml"
        if not file.is_file():
            pytest.skip(
                "needs KubeRay's custom resource definitions: set XMODAL_TEST_SCHEMAS to their folder"
            )
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        definition = yaml.load(file.read_text(), Loader=loader)
        version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = jsonschema.Draft202012Validator(schema)
    return found


def _one(folder: str, store: str | None = None) -> dict[str, Any]:
    documents = build(KUBERAY / folder, [f"../{store}"] if store else None)
    assert len(documents) == 1, "deleting a job must not take anything else with it"
    return documents[0]


def _cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec  # type: ignore[no-any-return]


def _pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod templates of a document: head, workers, submitter."""
    cluster = _cluster_spec(document)
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])
    if document["kind"] == "RayJob":
        yield document["spec"]["submitterPodTemplate"]


DOCUMENTS = [(folder, store) for folder in (*JOBS, "cluster") for store in STORES]


@pytest.mark.parametrize(("folder", "store"), DOCUMENTS)
def test_documents_are_of_their_kind(validators: dict[str, Any], folder: str, store: str) -> None:
    document = _one(folder, store)
    errors = [f"{e.json_path}: {e.message[:200]}" for e in validators[document["kind"]].iter_errors(document)]
    assert errors == []


def test_the_schema_check_sees_a_wrong_field(validators: dict[str, Any]) -> None:
    document = _one("train")
    next(_pods(document))["spec"]["containers"][0]["livenesProbe"] = {}
    assert not validators["RayJob"].is_valid(document)


@pytest.mark.parametrize(("folder", "store"), DOCUMENTS)
def test_pods_are_restricted_probed_and_take_no_secret_in_the_clear(folder: str, store: str) -> None:
    document = _one(folder, store)
    for pod in _pods(document):
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "xmodal", (
            "the NetworkPolicy selects by it"
        )
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["image"] == f"xmodal-dist:{__version__}"
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert not [v for v in container["env"] if re.search("TOKEN|SECRET|KEY|PASSWORD", v["name"])]
    head, *workers = (pod["spec"] for pod in _pods(document))
    for worker in (worker for worker in workers if worker["containers"][0]["name"] == "ray-worker"):
        assert worker["automountServiceAccountToken"] is False, (
            "only the autoscaler, on the head, asks the API server"
        )
    for pod in (head, *workers[:2]):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= pod["containers"][0].keys()


def test_references_lead_somewhere() -> None:
    setup = {path.stem: yaml.safe_load(path.read_text()) for path in (KUBERAY / "setup").glob("*.yaml")}
    readme = (CLUSTER / "README.md").read_text()
    for folder, store in DOCUMENTS:
        document = _one(folder, store)
        assert document["metadata"]["namespace"] == setup["namespace"]["metadata"]["name"]
        cluster = _cluster_spec(document)
        assert cluster["authOptions"]["mode"] == "token"
        secrets = {cluster["authOptions"]["secretName"]}
        for pod in list(_pods(document))[:3]:
            container = pod["spec"]["containers"][0]
            secrets |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
            claims = [
                v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
            ]
            wanted = [{"claimName": setup["pvc"]["metadata"]["name"]}] if store == "store-pvc" else []
            assert claims == wanted
        for secret in secrets:
            assert f"create secret generic {secret} " in readme
    selector = setup["network-policy"]["spec"]["podSelector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/part-of": "xmodal"}
    assert all(rule["from"] for rule in setup["network-policy"]["spec"]["ingress"]), (
        "ingress from nowhere else"
    )


@pytest.mark.parametrize("folder", JOBS)
def test_entrypoints_are_commands_of_ours(folder: str, parses: Callable[[str], dict[str, object]]) -> None:
    document = _one(folder)
    assert document["metadata"]["name"] == f"xmodal-{folder}"
    entrypoint = document["spec"]["entrypoint"]
    assert entrypoint.startswith(f"xmodal {folder} ")
    root = {"train": "/store/", "tune": "/store/", "score": "s3://"}[folder]
    paths = re.findall(r"--(?:data|output|bundle|input) (\S+)", entrypoint)
    assert paths and all(path.startswith(root) for path in paths)
    assert parses(entrypoint).get("resume", True) is True, "a retry on a new cluster continues the run"


@pytest.mark.parametrize("folder", (*JOBS, "cluster"))
def test_groups_scale_and_ray_is_of_our_range(folder: str) -> None:
    cluster = _cluster_spec(_one(folder))
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    line = re.search(r'"(ray\[.+\].*)"', (CLUSTER.parent / "pyproject.toml").read_text())
    assert line and Requirement(line[1]).specifier.contains(cluster["rayVersion"])


def test_the_standing_cluster_is_that_of_the_jobs() -> None:
    standing = yaml.safe_load((KUBERAY / "cluster" / "raycluster.yaml").read_text())
    job = yaml.safe_load((KUBERAY / "job" / "rayjob.yaml").read_text())
    assert standing["spec"] == job["spec"]["rayClusterSpec"]
