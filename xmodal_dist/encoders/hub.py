"""Pretrained networks of Hugging Face ``transformers``, by a local folder or a hub id.

What is in the hub's cache on this machine is taken as it is; the network is asked only for what is not there. Nothing
that comes with a network is executed: its class is one of the library's own, its weights are safetensors.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from torch import nn

from xmodal_dist.errors import UsageError

__all__ = [
    "fetch", "fetch_config", "layer_parameters", "load_transformer", "make_transformer", "not_found", "optional",
    "settle", "source_of",
]  # fmt: skip

_T = TypeVar("_T")
_CONNECT_TIMEOUT_S = 5.0
# A bias that all of a query's scores have in common: softmax does not see it, so its gradient is rounding noise.
_KEY_BIAS = re.compile(r"(^|\.)(key|k_proj|k_lin)\.bias$")


def optional(package: str, extra: str) -> Any:
    """A package that only an extra installs.

    Raises:
        UsageError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"this encoder needs the package {package} ({error}); install it: pip install 'xmodal-dist[{extra}]'"
        ) from error


def source_of(reference: str) -> str:
    """Where a network comes from: the absolute path of a local folder, or the hub id as it is.

    Raises:
        UsageError: what can only be a path is no folder on this machine.
    """
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.isdir(path):
        return path
    if reference.startswith(("/", ".", "~")) or reference.count("/") > 1:
        raise not_found(reference, "folder", f"{path} is no folder on {socket.gethostname()}")
    return reference


def not_found(reference: str, what: str, why: str) -> UsageError:
    """The error of a pretrained network of which something is not there."""
    return UsageError(
        f"pretrained network {reference!r}: no {what} ({why}). Name a folder that every machine of the run can read "
        "(config.json, model.safetensors, and for text tokenizer.json), or a hub id that HF_HOME's cache holds or the "
        "network can fetch; `pretrained: false` does without weights"
    )


def fetch(load: Callable[..., _T], source: str, what: str, **options: Any) -> _T:
    """``load(source, **options)`` of a ``from_pretrained``: from the folder, the hub's cache, or else the hub.

    Args:
        load: takes ``local_files_only`` and ``trust_remote_code``.
        source: what :func:`source_of` returned.
        what: what is loaded, for the error.
        options: passed on.

    Raises:
        UsageError: it is not there; says where it was looked for and what to set.
    """
    options["trust_remote_code"] = False
    local = os.path.isdir(source)
    try:
        with _quiet():
            return load(source, local_files_only=True, **options)
    except (OSError, ValueError, ImportError) as error:
        # What is not in the cache is an OSError; anything else a download would not mend.
        if local or not isinstance(error, OSError):
            raise not_found(source, what, _first_line(error)) from error
    if away := _out_of_reach():
        cache = importlib.import_module("huggingface_hub").constants.HF_HUB_CACHE
        raise not_found(source, what, f"not in the cache {cache}, and {away}")
    try:
        with _quiet():
            return load(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise not_found(source, what, _first_line(error)) from error


def fetch_config(source: str) -> tuple[str, str | None]:
    """The configuration of a network as JSON, and the hub's commit that it is of (None of a folder).

    Raises:
        UsageError: not there, or of a class that the installed library does not have.
    """
    config = fetch(optional("transformers", "hf").AutoConfig.from_pretrained, source, "usable config.json")
    commit = getattr(config, "_commit_hash", None)
    values = json.loads(config.to_json_string(use_diff=False))
    values.pop("_name_or_path", None)
    return json.dumps(values, indent=1, sort_keys=True), commit


def make_transformer(config: str, **options: Any) -> nn.Module:
    """The network of a stored configuration with fresh weights, in which nothing is random; asks no network.

    Args:
        config: JSON of :func:`fetch_config`.
        options: values of the configuration to replace.
    """
    library = optional("transformers", "hf")
    values = _without_randomness(json.loads(config)) | options
    if values["model_type"] not in library.CONFIG_MAPPING:
        raise UsageError(
            f"transformers {library.__version__} has no network of the type {values['model_type']}, which this "
            f"one is; it was made with {values.get('transformers_version')}: install that"
        )
    known = library.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    with _quiet():
        model: nn.Module = library.AutoModel.from_config(known, trust_remote_code=False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def load_transformer(model: nn.Module, source: str, revision: str | None) -> None:
    """Fetch the published weights of a network of :func:`make_transformer` into it; parts taken out of it stay out.

    Raises:
        UsageError: there are none in safetensors, or they are of another network.
    """
    library = optional("transformers", "hf")
    options: dict[str, Any] = {"config": model.config, "use_safetensors": True, "output_loading_info": True}
    if revision is not None:
        options["revision"] = revision
    try:
        fetched, found = fetch(library.AutoModel.from_pretrained, source, "model.safetensors", **options)
    except RuntimeError as error:  # sizes that differ
        raise not_found(source, "weights that fit its config.json", _first_line(error)) from error
    wanted = model.state_dict()
    if missing := sorted(wanted.keys() & set(found["missing_keys"])):
        raise not_found(source, f"weights of {missing[0]}", f"{len(missing)} of {len(wanted)} tensors lack")
    tensors = fetched.state_dict()
    model.load_state_dict({name: tensors[name].to(old.dtype) for name, old in wanted.items()})


def settle(model: nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """Let no parameter learn that the features do not depend on: DDP waits for the gradient of each that learns.

    Args:
        model: the network.
        run: what it makes of a small input.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(run().sum(), [p for _, p in named], allow_unused=True)
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        parameter.requires_grad_(gradient is not None and not _KEY_BIAS.search(name))


def layer_parameters(model: nn.Module) -> Sequence[Sequence[nn.Parameter]]:
    """The parameters that learn, from input to output: what stands before the blocks, each block, and what follows.

    The blocks are the children of the list of modules that holds most parameters.
    """
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
    blocks = list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=[]))
    owner = {p: index for index, block in enumerate(blocks, start=1) for p in block.parameters()}
    layers: list[list[nn.Parameter]] = [[] for _ in range(len(blocks) + 2)]
    begun = not blocks
    for parameter in model.parameters():
        begun = begun or parameter in owner
        if parameter.requires_grad:
            layers[owner.get(parameter, len(blocks) + 1 if begun else 0)].append(parameter)
    return [layer for layer in layers if layer]


def _without_randomness(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without dropout, stochastic depth and masks drawn in ``forward``."""
    quiet = {name: 0.0 for name, v in values.items() if "drop" in name and isinstance(v, float)}
    masks = {"apply_spec_augment": False} if "apply_spec_augment" in values else {}
    return values | quiet | masks


def _out_of_reach() -> str:
    """Why the hub cannot be asked; "" if it can, so far as a connection tells."""
    hub = importlib.import_module("huggingface_hub").constants
    if hub.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    place = urlsplit(hub.ENDPOINT)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return ""
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{hub.ENDPOINT} cannot be reached: {error}"
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and remarks."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
