"""What can go wrong with a network or its weights.

ModelError (ValueError)
|-- ConfigError        a configuration that no Vision Transformer can have
|   `-- UnknownArchError   a name that is not in the zoo
`-- CheckpointError    a file of weights that is unreadable, unsafe or contradicts itself
    `-- OptionError        what the user said of the file cannot be: a format, an architecture, an argument
"""


class ModelError(ValueError):
    """Root of this package's errors; the message says what was given, what was expected and what to do next."""


class ConfigError(ModelError):
    """A configuration that no Vision Transformer can have."""


class UnknownArchError(ConfigError):
    """An architecture name that is not in the zoo."""


class CheckpointError(ModelError):
    """A checkpoint that is unreadable, unsafe or contradicts itself."""


class OptionError(CheckpointError):
    """What the user said of a checkpoint cannot be; it is mended where it was said, not in the file."""
