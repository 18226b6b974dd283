"""NVIDIA's compiler: what it cannot take, found in the file alone (`lint`), and engines built with the one that is installed (`build`).

Nothing here imports TensorRT but the child process that builds (worker.py).
"""

from vit_runtime.tensorrt.engine import Build, Profile, RefusedError, build
from vit_runtime.tensorrt.rules import Problem, lint

__all__ = ["Build", "Problem", "Profile", "RefusedError", "build", "lint"]
