"""Does a file still compute what PyTorch computed, another file computes, another provider? Judged by the noise floor (docs/parity.md).

The reference is PyTorch in float64; the floor is PyTorch's own float32 error against it. An artefact passes when its error stays
within a small multiple of the floor, at every batch size. In reduced precision it has to stay as near as it was when it was made:
by the cosine of each output, and by the divergence of probabilities. NaN or Inf anywhere fails.
"""

from vit_runtime.parity.judging import BATCH_SIZES, FLOAT32_LIMITS, Check, Report, between, judge, measure, scale_of
from vit_runtime.parity.original import check_original, open_original
from vit_runtime.parity.pairs import Pictures, compare, extremes, photographs, steady
from vit_runtime.parity.record import batches, check_record, golden_inputs, reduce_outputs
from vit_runtime.parity.reporting import Result, junit, summary

__all__ = [
    "BATCH_SIZES",
    "FLOAT32_LIMITS",
    "Check",
    "Pictures",
    "Report",
    "Result",
    "batches",
    "between",
    "check_original",
    "check_record",
    "compare",
    "extremes",
    "golden_inputs",
    "judge",
    "junit",
    "measure",
    "open_original",
    "photographs",
    "reduce_outputs",
    "scale_of",
    "steady",
    "summary",
]
