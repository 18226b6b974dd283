"""Why something that runs models cannot be used here, and what mends it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Obstacle:
    """Why an engine or a provider cannot be used, and what mends it.

    `missing`: this machine lacks something (a wheel, a library, a GPU); `broken`: all is there and yet it fails.
    """

    status: Literal["missing", "broken"]
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def one_line(error: object) -> str:
    """A foreign error's text without codes and source positions, on one line of at most 240 characters; of a CUDA library, what it says."""
    if (failure := re.search(r"\b(?:CUDA|CUBLAS|CUDNN|CUFFT|CURAND) failure \d+: [^;]+", str(error))) is not None:
        return textwrap.shorten(failure[0].strip(), 240, placeholder=" ...")
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)(?: const)? ", "", str(error))
    text = re.sub(r"(?:Exception from |Check '[^']*' failed at )?src/\S+:\d+:\s*", "", text)  # OpenVINO's
    return textwrap.shorten(text.strip().rstrip("."), 240, placeholder=" ...") or type(error).__name__
