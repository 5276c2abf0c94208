"""As much of ``kubectl kustomize`` as the files in ``cluster/kuberay`` use; whatever else they said would fail here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"

Document = dict[str, Any]


def build(folder: Path, components: list[str] | None = None) -> list[Document]:
    """The documents that ``kubectl apply -k`` would send.

    Args:
        folder: one that holds a kustomization.yaml.
        components: in place of those that it names.
    """
    spec = _read(folder / "kustomization.yaml")
    assert spec.keys() <= {"apiVersion", "kind", "namespace", "resources", "components", "patches"}
    documents: list[Document] = []
    for resource in spec["resources"]:
        path = folder / resource
        documents += build(path) if path.is_dir() else [_read(path)]
    for component in components or spec.get("components", []):
        content = _read(folder / component / "kustomization.yaml")
        assert content.keys() <= {"apiVersion", "kind", "patches"} and content["kind"] == "Component"
        documents = [_patched(d, content["patches"]) for d in documents]
    documents = [_patched(d, spec.get("patches", [])) for d in documents]
    if "namespace" in spec:
        documents = [{**d, "metadata": {**d["metadata"], "namespace": spec["namespace"]}} for d in documents]
    return documents


def _read(path: Path) -> Document:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content


def _patched(document: Document, patches: list[Document]) -> Document:
    document = copy.deepcopy(document)
    for patch in patches:
        if patch["target"] == {"kind": document["kind"]}:
            for operation in yaml.safe_load(patch["patch"]):
                _apply(document, **operation)
    return document


def _apply(document: Any, op: str, path: str, value: Any) -> None:
    """One operation of RFC 6902: ``add`` and ``replace``."""
    *parents, last = path.split("/")[1:]
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    if isinstance(document, list):
        if last == "-":
            assert op == "add"
            document.append(value)
            return
        document[int(last)] = value
        return
    assert (last in document) == (op == "replace"), f"{op} {path}"
    document[last] = value
