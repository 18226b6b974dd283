"""From a path to a network: recognise, plan, hold the plan against the file, and only then read the weights, one parameter at a time."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from vit_models.checkpoints import repairs
from vit_models.checkpoints.files import check_sha256, open_checkpoint, sha256_of
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step
from vit_models.config import Pool, ViTConfig
from vit_models.errors import CheckpointError, ConfigError, OptionError
from vit_models.memory import hand_back
from vit_models.shapes import parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from vit_models.vit import ViT

# In this order where several could read a file and would make the same network of it.
MODULES = (
    "native",
    "hugging_face",
    "timm",
    "torchvision",
    "jax",
    "dinov3",
    "dinov2",
    "dino",
    "mae",
    "openai_clip",
    "open_clip",
    "onnx_graph",
)
MAX_SHARED = 4  # parameters made of one stored tensor; blocks stacked in one array are more
HAND_BACK = 64 << 20  # bytes read after which what was freed goes back to the system
ONE_BY_ONE = 1 << 20  # bytes of a parameter from which on the system gets back, each time, what reading it took
FLOATS = ("F32", "F16", "BF16", "F64")


class Format(Protocol):
    """What a format's module offers."""

    NAME: str
    TITLE: str

    def recognise(self, file: CheckpointFile) -> bool: ...
    def plan(self, file: CheckpointFile, options: Options) -> Plan: ...


@dataclass(frozen=True)
class Spec:
    """What a checkpoint turned out to be.

    `config` is the network's as it runs; `trained_size` the image size of the stored position table. `parameters` counts the network's
    numbers. `dtypes` are those of the weights as stored. `converted` names the stored tensors that make the network, `ignored` those that
    take no part, each with the reason. `preprocessing` is the JSON form of `vit_runtime.Preprocessing`. `sha256` is None until the
    weights are read.
    """

    path: Path
    format: str
    title: str
    arch: str | None
    config: ViTConfig
    trained_size: tuple[int, int]
    parameters: int
    dtypes: tuple[str, ...]
    labels: tuple[str, ...] | None
    preprocessing: Mapping[str, Any] | None
    converted: tuple[str, ...]
    ignored: Mapping[str, str]
    notes: tuple[str, ...]
    sha256: str | None = None


def formats() -> dict[str, Format]:
    """Every format that can be read, by its name."""
    modules = [cast("Format", importlib.import_module(f"vit_models.checkpoints.{name}")) for name in MODULES]
    return {module.NAME: module for module in modules}


def inspect(path: Path | str, options: Options = Options()) -> Spec:
    """What `load` would make of a checkpoint, from names and shapes alone: no weight is read, and safetensors need no torch.

    Raises: CheckpointError for everything that can be told without the numbers; OptionError, which is one, where `options` do not fit the
    file; ConfigError for a wish that the network cannot fulfil.
    """
    return _prepare(Path(path), options)[2]


@dataclass(frozen=True)
class Prepared:
    """A checkpoint's network before its weights are read.

    `model` lies on torch's meta device, in eval mode, until `fill` has given it all of its float32 parameters. `read` gives one of them
    by name, float32, and leaves nothing of it in memory; None where parameters share stored tensors, so that reading them one by one
    would read those again and again. Both raise CheckpointError for numbers that cannot be the network's.
    """

    model: ViT
    spec: Spec
    fill: Callable[[], None]
    read: Callable[[str], Tensor] | None


def load(
    path: Path | str,
    options: Options = Options(),
    *,
    sha256: str | None = None,
    outputs: Sequence[str] | None = None,
    dynamic_size: bool = False,
) -> tuple[ViT, Spec]:
    """The network of a checkpoint, in eval mode with float32 weights, and what the checkpoint is.

    `path` is a file or a folder of any format in `formats()`; its content tells which. `options` says what the file does not.
    `sha256` is what the file has to have. `outputs` and `dynamic_size` as in `ViT`.
    Weights stay memory-mapped where they need no repair.

    Raises: CheckpointError for a file that is unreadable, unsafe, incomplete or contradicts itself; OptionError, which is one, where
    `options` do not fit the file; ConfigError for a wish that the network cannot fulfil.
    """
    prepared = prepare(path, options, sha256=sha256, outputs=outputs, dynamic_size=dynamic_size)
    prepared.fill()
    return prepared.model, prepared.spec


def prepare(
    path: Path | str,
    options: Options = Options(),
    *,
    sha256: str | None = None,
    outputs: Sequence[str] | None = None,
    dynamic_size: bool = False,
) -> Prepared:
    """What `load` would give, without its weights yet. Raises as `load` does, but for what the numbers themselves would tell."""
    import torch

    from vit_models.vit import ViT

    path = Path(path)
    if sha256 is not None:
        check_sha256(path, sha256)
    file, plan, spec = _prepare(path, options)
    if dynamic_size and plan.one_size:
        raise ConfigError(f"got a free image size, but {path} has one: {plan.one_size}; give --img-size instead")
    with torch.device("meta"):
        model = ViT(spec.config, outputs, dynamic_size).eval()
    shared = max(Counter(source for step in plan.steps.values() for source in step.sources).values(), default=0)
    return Prepared(
        model,
        dataclasses.replace(spec, sha256=sha256_of(path)),
        fill=lambda: _fill(model, _read(file, plan, spec)),
        read=(lambda name: _read_one(file, plan, spec, name)) if shared <= MAX_SHARED else None,
    )


def _fill(model: ViT, state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(state, assign=True)


def _prepare(path: Path, options: Options) -> tuple[CheckpointFile, Plan, Spec]:
    file = open_checkpoint(path, options)
    module, plan = _identify(file, options)
    plan = _without_head(plan) if options.drop_head else plan
    plan = plan if options.pool is None else _repooled(plan, options.pool)
    _check_names(file, plan, module)
    config = dataclasses.replace(plan.config, img_size=options.img_size or plan.run_size or plan.config.img_size)
    used = {source for step in plan.steps.values() for source in step.sources}
    dtypes = tuple(sorted({file.tensors[name].dtype for name in used}))
    parameters = sum(_count(shape) for shape in parameter_shapes(config).values())
    notes = (*file.notes, *plan.notes)
    if config.pos_embed and config.img_size != plan.config.img_size:
        sizes = [f"{height} x {width}" for height, width in (plan.config.img_size, config.img_size)]
        notes = (*notes, f"the position table was stored for {sizes[0]} and is resampled to {sizes[1]} ({config.resample})")
    if "F64" in dtypes:
        notes = (*notes, "float64 weights are rounded to float32")
    spec = Spec(
        path, module.NAME, module.TITLE, plan.arch, config, plan.config.img_size, parameters, dtypes,
        plan.labels, plan.preprocessing, tuple(sorted(used)), plan.ignored, notes,
    )  # fmt: skip
    _check_labels(file, spec)
    return file, plan, spec


def _identify(file: CheckpointFile, options: Options) -> tuple[Format, Plan]:
    known = formats()
    if options.format is not None and options.format not in known:
        raise OptionError(f"got format {options.format!r}, expected one of {', '.join(known)}")
    found = [known[options.format]] if options.format is not None else _recognised(file)
    if not found:
        some = ", ".join(list(file.tensors)[:3])
        raise CheckpointError(
            f"{file.path} is not laid out like any Vision Transformer that is known here (its tensors: {some}, …); "
            f"expected one of {', '.join(known)}; name it with --format if it is one of them"
        )
    plans, refusals = list[tuple[Format, Plan]](), list[CheckpointError]()
    for module in found:
        try:
            plans.append((module, _plan(module, file, options)))
        except CheckpointError as error:
            refusals.append(error)
    if not plans:
        raise refusals[0]
    differing = {_meaning(plan, options): module for module, plan in reversed(plans)}
    if len(differing) > 1:
        raise CheckpointError(
            f"{file.path} could be {' or '.join(module.TITLE for module, _ in plans)}, which compute different things from it; "
            f"say which with --format {' or --format '.join(module.NAME for module, _ in plans)}"
        )
    return min(plans, key=lambda found: (found[1].preprocessing is None, found[1].assumed))  # the first of those that know it best


def _recognised(file: CheckpointFile) -> list[Format]:
    return [module for module in formats().values() if module.recognise(file)]


def _plan(module: Format, file: CheckpointFile, options: Options) -> Plan:
    """The module's plan. What is wrong with the file alone is the file's fault, what is wrong only as it was told the user's."""
    try:
        return module.plan(file, options)
    except ConfigError as error:
        if _is_sound(module, file):
            raise OptionError(f"{file.path}: {error}") from error
        raise CheckpointError(f"{file.path}: its configuration is not a Vision Transformer's ({error})") from error
    except CheckpointError as error:
        if options.format is not None and not module.recognise(file) and (like := _recognised(file)):
            told = " or ".join(other.TITLE for other in like)
            raise OptionError(f"{file.path} is not laid out like {module.TITLE}, but like {told}; leave --format out") from error
        raise error if str(file.path) in str(error) else type(error)(f"{file.path}: {error}") from error


def _is_sound(module: Format, file: CheckpointFile) -> bool:
    """Whether there is a configuration for the file as it stands, or could be one with what it does not tell."""
    try:
        module.plan(file, Options())
    except ConfigError:
        return False
    except CheckpointError:
        pass
    return True


def _meaning(plan: Plan, options: Options) -> object:
    """What a plan computes: two formats that agree on it need not be told apart."""
    config = plan.config
    if (options.img_size or plan.run_size) in (None, config.img_size):
        config = dataclasses.replace(config, resample="bicubic")  # nothing is resampled
    return config, tuple(sorted((name, step.sources) for name, step in plan.steps.items()))


def _without_head(plan: Plan) -> Plan:
    dropped = dict.fromkeys(_sources(plan, "head."), "the head, left out with --drop-head")
    config = dataclasses.replace(plan.config, num_classes=0, projection=False)
    kept = {name: step for name, step in plan.steps.items() if not name.startswith("head.")}
    return dataclasses.replace(plan, config=config, steps=kept, ignored={**plan.ignored, **dropped}, labels=None)


def _repooled(plan: Plan, pool: Pool) -> Plan:
    if pool == plan.config.pool:
        return plan
    config = dataclasses.replace(plan.config, pool=pool)
    if pool == "map":
        raise ConfigError(f"got pool 'map', but these weights have no learned probe: they pool by {plan.config.pool!r}; leave --pool out")
    if config.num_classes and config.features_dim != plan.config.features_dim:
        raise ConfigError(
            f"got pool {pool!r}, but the head was trained on pool {plan.config.pool!r}; leave --pool or, with --drop-head, the head out"
        )
    if config.representation_size and config.pooled_dim != plan.config.pooled_dim:
        raise ConfigError(f"got pool {pool!r}, but the pre-logits layer was trained on pool {plan.config.pool!r}; leave --pool out")
    dropped = dict.fromkeys(_sources(plan, "attn_pool."), f"the probe, not needed to pool by {pool!r}")
    kept = {name: step for name, step in plan.steps.items() if not name.startswith("attn_pool.")}
    note = f"pooled by {pool!r} as asked, not by {plan.config.pool!r} as trained"
    return dataclasses.replace(plan, config=config, steps=kept, ignored={**plan.ignored, **dropped}, notes=(*plan.notes, note))


def _sources(plan: Plan, prefix: str) -> list[str]:
    kept = {source for name, step in plan.steps.items() if not name.startswith(prefix) for source in step.sources}
    return [source for name, step in plan.steps.items() if name.startswith(prefix) for source in step.sources if source not in kept]


# ---- the file against the plan -------------------------------------------------------------------------------------------------------


def _check_names(file: CheckpointFile, plan: Plan, module: Format) -> None:
    expected = parameter_shapes(plan.config).keys()
    if plan.steps.keys() != expected:
        wrong = sorted(plan.steps.keys() ^ expected)
        raise CheckpointError(f"{file.path}: as {module.TITLE} its {_some(wrong)} cannot be told; name the format with --format")
    used = {source for step in plan.steps.values() for source in step.sources}
    missing = sorted(used - file.tensors.keys())
    unexpected = sorted(file.tensors.keys() - used - plan.ignored.keys())
    odd = [f"{name} ({file.tensors[name].dtype})" for name in sorted(used & file.tensors.keys()) if file.tensors[name].dtype not in FLOATS]
    faults = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("unexpected", unexpected), ("not float", odd)) if names]
    if faults:
        raise CheckpointError(f"{file.path} does not fit {module.TITLE}: {'; '.join(faults)}; {_cause(plan, missing, unexpected)}")


def _cause(plan: Plan, missing: list[str], unexpected: list[str]) -> str:
    if missing and set(missing) <= set(_sources(plan, "head.")):
        return "the head was not saved with the weights: give --drop-head to do without it, or save the whole model"
    if missing and unexpected:
        return "the names belong to another model or version; name the format with --format, or save the weights again"
    if missing:
        return "the file is incomplete, or its configuration describes another network"
    if unexpected:
        return "the configuration describes another network, or the weights hold more than a plain Vision Transformer computes"
    return "save the weights as float32, float16 or bfloat16"


def _check_labels(file: CheckpointFile, spec: Spec) -> None:
    if spec.labels is not None and len(spec.labels) != spec.config.num_classes:
        raise CheckpointError(
            f"{file.path} names {len(spec.labels)} labels for {spec.config.num_classes} classes; expected one name a class"
        )


def _read(file: CheckpointFile, plan: Plan, spec: Spec) -> dict[str, Tensor]:
    state, wrong, shapes, copied = dict[str, "Tensor"](), list[str](), parameter_shapes(plan.config), 0
    # Parameters that are made of the same tensors (blocks stacked in one array) follow one another, so that those are read once.
    for sources, names in groupby(sorted(shapes, key=lambda name: plan.steps[name].sources), lambda name: plan.steps[name].sources):
        tensors = [file.read(source).detach().float() for source in sources]
        for name in names:
            value, fault = _parameter(file, name, plan.steps[name], tensors, shapes[name])
            if value is None:
                wrong.append(fault)
            else:
                state[name] = value
        for source in sources:
            file.release(source)
        copied += sum(tensor.nbytes for tensor in tensors)
        if copied > HAND_BACK:
            copied = 0
            hand_back()
    if wrong:
        raise _damaged(file, wrong)
    if "embeddings.pos_embed" in state:
        state["embeddings.pos_embed"] = _resampled(state["embeddings.pos_embed"], plan.config, spec.config)
    return state


def _read_one(file: CheckpointFile, plan: Plan, spec: Spec, name: str) -> Tensor:
    """One parameter, in memory of its own: the pages of the file are given back."""
    step = plan.steps[name]
    tensors = [file.read(source).detach().float() for source in step.sources]
    value, fault = _parameter(file, name, step, tensors, parameter_shapes(plan.config)[name])
    if value is None:
        raise _damaged(file, [fault])
    value = _resampled(value, plan.config, spec.config) if name == "embeddings.pos_embed" else value.clone()
    del tensors
    for source in step.sources:
        file.release(source)
    if value.nbytes >= ONE_BY_ONE:
        hand_back()
    return value


def _damaged(file: CheckpointFile, faults: Sequence[str]) -> CheckpointError:
    return CheckpointError(f"{file.path}: {_some(faults, '; ')}; the weights are damaged, or do not belong to this configuration")


def _parameter(file: CheckpointFile, name: str, step: Step, tensors: Sequence[Tensor], shape: tuple[int, ...]) -> tuple[Tensor | None, str]:
    """The parameter, or None and what is wrong with it."""
    told = ", ".join(f"{source} is {file.shape(source)}" for source in step.sources)
    try:
        value = step.repair(*tensors)
    except (RuntimeError, ValueError, IndexError, TypeError):  # what torch says of shapes that do not go together
        return None, f"{told}, of which {name} {shape} cannot be made"
    if tuple(value.shape) != shape:
        as_stored = step.repair is repairs.as_is
        return None, f"{told}, expected {shape}" if as_stored else f"{told}, which makes {name} {tuple(value.shape)}, expected {shape}"
    if not bool(value.isfinite().all()):
        return None, f"{', '.join(step.sources)} holds NaN or Inf"
    return value.contiguous(), ""


def _resampled(table: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """The position table (1, T, D) on the new size's grid, prefix rows as they are; in float64, so that only the result is rounded."""
    if new.img_size == old.img_size:
        return table
    import torch

    from vit_models.resample import resample_table

    prefix, patches = table[0, : old.num_prefix], table[0, old.num_prefix :]
    grid = resample_table(patches.double().reshape(*old.grid_size, -1), new.grid_size, old.resample)
    return torch.cat([prefix, grid.flatten(0, 1).float()]).unsqueeze(0)


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = len(items) - 3
    return separator.join(items[:3]) + (f" and {more} more" if more > 0 else "")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
