"""From the token ids of a response to its text, count and finish reason, as `dcsft_hf` has them."""

from transformers import PreTrainedTokenizerBase

from .arguments import GenerationArguments
from .decoding import Completion, StopTexts, completion


def completion_of(
    tokenizer: PreTrainedTokenizerBase, row: list[int], end: tuple[int, ...], arguments: GenerationArguments
) -> Completion:
    """One row's tokens as a response.

    Args:
        tokenizer: the checkpoint's.
        row: generated token ids, the end token included; what an engine generated behind a stop
            text or an end token is left out.
        end: token ids that end a response.
        arguments: the stop texts, and whether special tokens are text.
    """
    whole = completion(tokenizer, row, end, arguments, None)
    if not arguments.stop or not _contains_stop(tokenizer, row, arguments):
        return whole
    # Which token completed the stop text is found in the way that dcsft_hf finds it, one by one.
    stops = StopTexts(tokenizer, arguments, end, 1)
    reached = next((at for at in range(1, len(row) + 1) if stops.reached(row[:at])), None)
    return completion(tokenizer, row, end, arguments, reached)


def _contains_stop(
    tokenizer: PreTrainedTokenizerBase, row: list[int], arguments: GenerationArguments
) -> bool:
    text = tokenizer.decode(
        row, skip_special_tokens=arguments.skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return any(stop in text for stop in arguments.stop)
