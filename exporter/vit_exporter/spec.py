"""How to export: everything that the user can ask for of a file, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import defs

from vit_exporter.targets import DEFAULT_TARGET, TARGETS, check_precision, find_target
from vit_runtime.errors import InputError

MIN_OPSET = 18  # torch's exporter writes its graphs in opset 18 and later
# From opset 21 on QuantizeLinear has an output_dtype. onnxruntime 1.32 sets it to int8 when it moves one past a Reshape, makes the zero
# point unsigned for x86, and then finds that the two differ.
STATIC_MAX_OPSET = 20
MAX_OPSET = 23  # the newest that torch's exporter is tested with

SEARCHED = ("int8", "int8-static", "int4w", "fp8")  # precisions in which layers can be kept in a higher one


@dataclass(frozen=True)
class ExportSpec:
    """How to export. `out` ends in .onnx; `external_data` puts the weights beside it even below 2 GB.

    `target` and `precision` are names of `vit_exporter.targets`; `opset` is the target's own where it is None. `token_split` keeps the
    tokens in pieces of so many (SplitTokens). `calibrate` is a folder of images for reduced precision, `max_drop` what it may cost:
    the part of the images that may get another class, and by how much the cosine of any image's embedding may fall. `keep` names layers
    that stay in higher precision in any case. `verify_passes` holds the graph against PyTorch after every exact pass; `compare_speed`
    times a verified file of reduced precision against its float32, for a note where it does not pay.

    Raises: InputError for an opset that the exporter does not write, or options that do not go together.
    """

    out: Path
    opset: int | None = None
    simplify: bool = True
    verify: bool = True
    external_data: bool = False
    force: bool = False
    target: str = DEFAULT_TARGET
    precision: str = "fp32"
    token_split: tuple[int, ...] = ()
    calibrate: Path | None = None
    max_drop: float | None = None
    keep: tuple[str, ...] = ()
    verify_passes: bool = False
    compare_speed: bool = False

    def __post_init__(self) -> None:
        target = find_target(self.target)
        check_precision(target, self.precision)
        newest = min(MAX_OPSET, defs.onnx_opset_version())
        why = f"{newest} is the newest that torch's exporter is tested with"
        if self.precision == "int8-static" and newest > STATIC_MAX_OPSET:
            newest, why = STATIC_MAX_OPSET, "onnxruntime on x86 refuses the quantised activations of precision int8-static in later ones"
        if self.written_opset < MIN_OPSET:
            why = "torch's exporter starts at 18, and LayerNormalization as one op at 17"
        if not MIN_OPSET <= self.written_opset <= newest:
            raise InputError(f"got opset {self.opset}, expected {MIN_OPSET} to {newest}: {why}; leave --opset out for {target.opset}")
        if self.reduced and not self.simplify:
            raise InputError(
                f"got --no-simplify with precision {self.precision}, expected one of them: what is not simplified cannot be quantised"
            )
        if self.calibrate is not None and not self.reduced:
            raise InputError("got --calibrate for precision fp32, which neither measures nor judges anything on images; leave it out")
        if self.max_drop is not None and (self.precision not in SEARCHED or not self.verify):
            raise InputError(f"got --max-drop, expected it with verification and one of the precisions {', '.join(SEARCHED)}")
        if self.max_drop is not None:
            check_drop(self.max_drop)
        if self.calibrate is None and target.on_gpu and self.precision in SEARCHED:
            raise InputError(
                f"got precision {self.precision} for target {target.name} without --calibrate, expected a folder of images "
                "such as the network will see: scales are measured on them"
            )
        if self.calibrate is not None and not self.verify and not target.measures(self.precision):
            raise InputError(f"got --calibrate with --no-verify for {self.precision}, which its images would only judge; leave one out")
        if self.keep and self.precision not in SEARCHED:
            raise InputError(f"got --keep for precision {self.precision}, expected it with one of {', '.join(SEARCHED)}")
        if self.verify_passes and not (self.verify and self.simplify):
            raise InputError("got --verify-passes without verification or passes, expected both")

    @property
    def written_opset(self) -> int:
        """The opset that is asked for, or the target's own."""
        return TARGETS[self.target].opset if self.opset is None else self.opset

    @property
    def reduced(self) -> bool:
        """Whether it is not float32."""
        return self.precision != "fp32"


def check_drop(drop: float) -> None:
    """Raises: InputError for a budget of accuracy that is none."""
    if not 0 < drop < 1:
        raise InputError(f"got --max-drop {drop:g}, expected a number between 0 and 1, such as 0.01")
