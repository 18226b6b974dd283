"""What can go wrong with a network or its weights.

ModelError (ValueError)
|-- ConfigError        a configuration that no Vision Transformer can have
|   `-- UnknownArchError   a name that is not in the zoo
`-- CheckpointError    a file of weights that is unreadable, unsafe or contradicts itself
"""


class ModelError(ValueError):
    """Root of this package's errors; the message says what was given, what was expected and what to do next."""


class ConfigError(ModelError):
    """A configuration that no Vision Transformer can have."""


class UnknownArchError(ConfigError):
    """An architecture name that is not in the zoo."""


class CheckpointError(ModelError):
    """A checkpoint that is unreadable, unsafe or contradicts itself."""
