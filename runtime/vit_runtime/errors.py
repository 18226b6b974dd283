"""What can go wrong, and the exit code that a command gives for it.

    VitError
    |-- InputError        2  an argument or array that cannot be used as given
    |-- FileError         3  a file that is unreadable, unsafe or contradicts itself
    |   |-- ModelError         an .onnx file
    |   `-- ImageError         an image
    |-- MachineError      4  this machine lacks what was asked for
    |   `-- ProviderError      an execution provider
    `-- SessionError      1  a session that can no longer be used, or failed while it ran

A message is one line: what was given, what was expected, what to do next.
"""

import os
from pathlib import Path


class VitError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code = 1


class InputError(VitError):
    """An argument or array that cannot be used as given."""

    exit_code = 2


class FileError(VitError):
    """A file that is unreadable, unsafe or contradicts itself."""

    exit_code = 3


class ModelError(FileError):
    """An .onnx file that is unreadable, unsafe, not ours, or contradicts itself."""


class ImageError(FileError):
    """An image that cannot be decoded, or that is too large to be decoded safely."""


class MachineError(VitError):
    """This machine lacks what was asked for: a package, a provider, room on a disk."""

    exit_code = 4


class ProviderError(MachineError):
    """An execution provider that does not run here."""


class SessionError(VitError):
    """A session that can no longer be used, or that failed while it ran."""


def no_folder(folder: Path) -> str:
    """Why there is none of that name, and what to do: make it, where no file is in its way."""
    for above in (folder, *folder.parents):
        if os.path.lexists(above) and not os.path.isdir(above):
            return f"{above} is no folder; choose another place"
    return f"the folder {folder} does not exist; make it with `mkdir -p {folder}`"
