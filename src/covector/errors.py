"""Every error covector raises on purpose: one tree, one line of text each.

The text says what was expected, what came, and what to do. Errors are raised where the fact is known; context is
added at one place on the way up. The command line prints the text on one line and exits with code 2.
"""


class CovectorError(Exception):
    """The request could not be carried out; the text says why and what to do."""


class UnknownModel(CovectorError):
    """The name is neither a bundled model, a local folder, nor a checkpoint that the hub (or its cache) has."""


class HubUnreachable(CovectorError):
    """The hub did not answer (or is switched off) and the cache does not hold the checkpoint."""


class UnsupportedFamily(CovectorError):
    """No adapter reads this `model_type`."""


class UnsupportedConfig(CovectorError):
    """A configuration key changes the function in a way that is not implemented."""


class BadLayout(CovectorError):
    """A layout (words of an adapter, or a layout.toml) is not well-formed."""


class CheckpointMismatch(CovectorError):
    """Configuration and tensors disagree, or a tensor is missing or unaccounted for."""


class CorruptCheckpoint(CovectorError):
    """A weight file is truncated, malformed, or holds values that are not finite."""


class UnsafeCheckpoint(CovectorError):
    """Reading the file would mean executing code that it carries."""


class BadSite(CovectorError):
    """The text is not an address, or this model has no such place."""


class BadRank(CovectorError):
    """The number of dyads asked for is not usable."""


class UnknownBasis(CovectorError):
    """The model has no basis of that name, or it does not live in this space."""


class UnknownFrame(CovectorError):
    """No frame of that name."""


class FrameUnavailable(CovectorError):
    """The frame exists, but this model's anatomy does not allow it."""


class NotOneToken(CovectorError):
    """The text is not a single token of this vocabulary."""


class SpaceMismatch(CovectorError):
    """Two things that must live in the same space do not."""


class NotProven(CovectorError):
    """The loader's proof failed: canonical factors and the judge disagree."""


class MissingExtra(CovectorError):
    """The request needs an optional dependency that is not installed."""


class BadRequest(CovectorError):
    """Arguments that contradict each other or lie outside their range."""


class BadAgent(CovectorError):
    """An agent file is missing or not well-formed, or does not fit the model that is to act with it."""


class EnvironmentFailed(CovectorError):
    """An environment is unknown, cannot be made, does not fit the agent, or broke down in an episode."""


class CorruptAtlas(CovectorError):
    """The folder is no atlas, not a complete one, or its files disagree."""


class WorkerLost(CovectorError):
    """A process or a cluster that was to do a part of the work is gone."""


class BadTable(CovectorError):
    """Columns that do not fit together, or a file that is not a table."""


def in_words(error: OSError | ValueError) -> str:
    """Why a file could not be read, as a clause: without the number and the path that the system adds."""
    if isinstance(error, FileNotFoundError):
        return "there is none"
    return (error.strerror or type(error).__name__).lower() if isinstance(error, OSError) else str(error)
