"""What training scripts wrap around a state dict: which entry holds the weights, which prefixes the names carry, what else is told.

| who | layout |
| --- | --- |
| DeiT, BEiT, MAE, torchvision's references | {"model": …, "model_ema": …, "optimizer": …, "args": Namespace} |
| timm | {"state_dict": …, "state_dict_ema": …, "arch": …, "args": Namespace} |
| Lightning | {"state_dict": {"model.NAME": …}, "hyper_parameters": …} |
| DINO, iBOT, DINOv2, DINOv3 | {"student": …, "teacher": …}, or one state dict with names "student.…" and "teacher.…" |
| I-JEPA | {"encoder": …, "target_encoder": …} |
| timm's ModelEmaV2, torch's AveragedModel | names "module.…" and a counter "n_averaged" |
| DeepSpeed, DistributedDataParallel, FSDP, torch.compile | "module.", "_fsdp_wrapped_module.", "_orig_mod." in the names |

Model or EMA: without `Options.weights` the model's own weights are taken, as the training scripts' own evaluation does, but the teacher's
(and the target encoder's) where there is a student: there the EMA is the model that the papers report. Either way a note says so.

A prefix goes only if every name has it. Names that differ stay as they are: DINO's {"backbone.…", "head.…"}, DINOv2's {"backbone.…",
"dino_head.…", "ibot_head.…"} and its classifier's {"backbone.…", "linear_head.…"} are for the formats' modules to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_models.checkpoints.claims import check_name, shown, some
from vit_models.checkpoints.mapped import Stored
from vit_models.checkpoints.pickle_data import Opaque
from vit_models.errors import CheckpointError, OptionError

MODEL = ("model", "state_dict", "model_state_dict", "module", "student", "encoder", "net", "network", "params", "weights", "backbone")
EMA = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "teacher", "target_encoder")
MEANT_EMA = {"teacher", "target_encoder"}
PREFIXES = ("module.", "model.", "backbone.", "net.", "student.", "teacher.")
SEGMENTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # no network's own names
COUNTERS = ("n_averaged", "module.n_averaged")
MAX_DEPTH = 4
MAX_FACTS, MAX_TEXT, MAX_LIST = 2000, 1000, 1000


@dataclass
class Unwrapped:
    """The weights by their clean names, the plain values beside them, and what the user should be told."""

    state: Mapping[str, Stored]
    extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def unwrap(tree: Any, weights: str | None = None) -> Unwrapped:
    """The state dict in what a training script saved; `weights` is "ema", "model" or None (see the module's text).

    Raises: CheckpointError where there is none, where several could be meant, or where an entry of it is no dense tensor; OptionError where
    the one asked for is not there.
    """
    if weights not in (None, "ema", "model"):
        raise OptionError(f"got weights {shown(weights)}, expected ema or model")
    result, decided, taken = Unwrapped({}), False, list[str]()
    if isinstance(tree, dict):
        result.extras = plain_values(tree)
    for _ in range(MAX_DEPTH):
        entries = _weights_by_key(tree)
        if not entries:
            flat = _flat(tree)
            entries = _by_role(flat)
            if not entries:
                break
        key, is_ema = _choose(entries, None if decided else weights, result.notes)
        if others := [name for name, value in tree.items() if name not in entries and _has_tensors(value)]:
            result.notes.append(f"left out what lies beside {shown(key)}: {some(others)}")
        tree, decided = entries[key], decided or is_ema
        taken.append(key)
    else:
        raise CheckpointError(f"its weights are wrapped more than {MAX_DEPTH} times; save the state dict alone")
    if weights == "ema" and not decided:
        told = f"in {shown(taken[-1])} and no EMA beside them" if taken else "and does not say that they are an EMA's"
        raise OptionError(f"asked for the EMA weights, but it holds one set of weights {told}; leave --weights out")
    result.state = flat
    return result


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put in front of them, each with the name as stored. Raises: CheckpointError."""
    clean = dict[str, str]()
    for name in names:
        short = ".".join(part for part in name.split(".") if part not in SEGMENTS)
        if short in clean:
            raise CheckpointError(f"{shown(name)} and {shown(clean[short])} are the same name under a wrapper; save the state dict alone")
        clean[short] = name
    while prefix := next(
        (prefix for prefix in PREFIXES if clean and all(len(prefix) < len(n) and n.startswith(prefix) for n in clean)), None
    ):
        clean = {name.removeprefix(prefix): stored for name, stored in clean.items()}
    return clean


def plain_values(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The texts, numbers, and lists and dicts of them among a checkpoint's entries; long and deep ones are left out."""
    values = dict[str, Any]()
    for key, value in list(tree.items())[:MAX_LIST]:
        plain = _plain(value, [MAX_FACTS], 0)
        if isinstance(key, str) and plain is not _LEFT_OUT and plain != {} and plain != []:
            values[key] = plain
    return values


# ---- which entry -------------------------------------------------------------------------------------------------------------------------


def _weights_by_key(tree: Any) -> dict[str, Any]:
    """The entries under the names above that hold weights, or hold such entries themselves."""
    if not isinstance(tree, dict):
        raise CheckpointError(f"it holds a {type(tree).__name__}, expected a state dict; save it with torch.save(model.state_dict(), path)")
    known = dict[tuple[int, int], bool]()

    def holds(value: Any, depth: int) -> bool:
        if not isinstance(value, dict) or depth > MAX_DEPTH:
            return False
        place = (id(value), depth)
        if place not in known:
            known[place] = _has_tensors(value) or any(holds(value.get(key), depth + 1) for key in MODEL + EMA)
        return known[place]

    return {key: tree[key] for key in MODEL + EMA if holds(tree.get(key), 1)}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(tensor, Stored) for tensor in value.values())


def _by_role(flat: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """A state dict of student and teacher (model and EMA) as one for each; nothing where the names do not begin so."""
    roles = dict[str, dict[str, Stored]]()
    for name, tensor in flat.items():
        role, _, rest = name.partition(".")
        roles.setdefault(role, {})[rest] = tensor
    both = any(role in MODEL for role in roles) and any(role in EMA for role in roles)
    return roles if both and all(role in MODEL + EMA for role in roles) else {}


def _choose(entries: Mapping[str, Any], weights: str | None, notes: list[str]) -> tuple[str, bool]:
    """The entry to take, and whether it is an EMA's."""
    model, ema = [key for key in entries if key in MODEL], [key for key in entries if key in EMA]
    if len(model) > 1 or len(ema) > 1:
        keys = some(model if len(model) > 1 else ema)
        raise CheckpointError(f"it holds several sets of weights, {keys}; save the one that is meant: torch.save(checkpoint[NAME], path)")
    if not model:
        if weights == "model":
            raise OptionError(f"asked for the model's own weights, but it holds only {some(ema)}; leave --weights out")
        notes.append(f"took the EMA weights, {shown(ema[0])}: there are no others")
        return ema[0], True
    if not ema:
        return model[0], False
    is_ema = weights == "ema" or (weights is None and ema[0] in MEANT_EMA)
    key, other = (ema[0], model[0]) if is_ema else (model[0], ema[0])
    notes.append(
        f"it holds {shown(model[0])} and {shown(ema[0])} weights: took {shown(key)}; "
        f"--weights {'model' if is_ema else 'ema'} takes {shown(other)}"
    )
    return key, is_ema


def _flat(tree: Mapping[Any, Any]) -> dict[str, Stored]:
    """The tensors of a state dict by their clean names. Plain values may lie between them, other things not."""
    tensors = dict[str, Stored]()
    for name, value in tree.items():
        if isinstance(value, Stored):
            if name not in COUNTERS:
                tensors[check_name(name)] = value
        elif isinstance(value, Opaque):
            raise CheckpointError(f"{shown(name)} is stored as {value.maker}, expected a dense tensor; convert it before it is saved")
    if not tensors:
        keys = some(list(tree)) or "nothing"
        raise CheckpointError(f"it holds no weights under a key that is known here, only {keys}; save the state dict alone")
    for name, value in tree.items():
        if not isinstance(value, (Stored, str, int, float, type(None))):
            raise CheckpointError(f"{shown(name)} is a {type(value).__name__} among tensors; save the state dict alone")
    return {short: tensors[stored] for short, stored in clean_names(tensors).items()}


# ---- what else -------------------------------------------------------------------------------------------------------------------------

_LEFT_OUT = object()
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no output could take


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT and not _SURROGATE.search(value) else _LEFT_OUT
    if isinstance(value, (bool, int, float)):
        return value
    if not isinstance(value, (dict, list, tuple)) or len(value) > MAX_LIST or depth > MAX_DEPTH:
        return _LEFT_OUT
    items = dict[Any, Any]()
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if budget[0] <= 0:
            break
        plain = _plain(entry, budget, depth + 1)
        if plain is not _LEFT_OUT and (isinstance(key, str) or not isinstance(value, dict)):
            items[key] = plain
    return items if isinstance(value, dict) else list(items.values())
