"""A model run as far as one hook point, and no further."""

from torch import Tensor

from covector.run.decoder import Decoder


class _Reached(Exception):
    """No error: how the run stops, with what passed."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def passing(decoder: Decoder, tokens: Tensor, hook: str) -> Tensor:
    """What passes a hook point when these tokens [batch, position] run; its axes are those of the hook.

    Nothing behind the hook is computed or read from disk: no later block, no logits (at a vocabulary of 50,000 they
    are more work than a block). Raises BadRequest for a hook that the model does not have.
    """

    def stop(value: Tensor) -> Tensor:
        raise _Reached(value)

    try:
        decoder.run(tokens, intervene={hook: stop})
    except _Reached as reached:
        return reached.value
    raise AssertionError(f"{hook} is a hook point that the run did not pass")
