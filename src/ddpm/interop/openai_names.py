"""What the names and shapes of an improved- or guided-diffusion state dictionary say, and ours for each of them."""

import re
from collections.abc import Callable, Collection, Iterator
from itertools import count

from torch import Tensor

MODULE = re.compile(r"((?:input_blocks|output_blocks)\.\d+\.\d+|(?:middle_block|time_embed|out)\.\d+|label_emb)\.(.+)")
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
}


def is_openai(names: Collection[str]) -> bool:
    """Whether a state dictionary has these repositories' names."""
    return "input_blocks.0.0.weight" in names and "time_embed.0.weight" in names


class Architecture:
    """What the weights tell.

    Raises:
        KeyError, IndexError, ValueError: they are not what the two repositories write.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.time_channels = state["time_embed.0.weight"].shape[1]
        self.in_channels = state["input_blocks.0.0.weight"].shape[1]
        self.out_channels = state["out.2.weight"].shape[0]
        self.num_classes = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None

        rows = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
        attended = [f"output_blocks.{row}.1.qkv.weight" in state for row in range(rows)]
        after = [f"output_blocks.{row}.{1 + attended[row]}" for row in range(rows)]
        by_conv = [row for row in range(rows) if f"{after[row]}.conv.weight" in state]
        by_block = [row for row in range(rows) if f"{after[row]}.in_layers.0.weight" in state]
        levels = 1 + len(by_conv) + len(by_block)
        each = rows // levels  # rows a level on the way up: its blocks, one more than on the way down
        if by_conv + by_block != [each * level - 1 for level in range(1, levels)] or rows % levels:
            raise ValueError("the order of output_blocks")

        first_rows = range((levels - 1) * each, -1, -each)  # of each level, from the full image down
        self.blocks = each - 1
        self.residual_resampling = bool(by_block)
        self.attended = [attended[row] for row in first_rows]
        self.widths = [state[f"output_blocks.{row}.0.out_layers.3.weight"].shape[0] for row in first_rows]
        self.scale_shift = state["middle_block.0.emb_layers.1.weight"].shape[0] == 2 * self.widths[-1]

    @property
    def attended_widths(self) -> set[int]:
        """The widths that have attention; the middle has it always."""
        return {width for width, attention in zip(self.widths, self.attended, strict=True) if attention} | {
            self.widths[-1]
        }

    def modules(self) -> Iterator[tuple[str, str]]:
        """(their name, our name) of every module."""
        yield from ENDS.items()
        block, last = count(1), len(self.widths) - 1
        for level in range(last + 1):
            for index in range(self.blocks):
                number = next(block)
                yield f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{index}"
                yield f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{index}"
            if level < last:
                yield f"input_blocks.{next(block)}.0", f"down_blocks.{level}.downsamplers.0"
        for number in range((last + 1) * (self.blocks + 1)):
            level, index = divmod(number, self.blocks + 1)
            attention = self.attended[last - level]
            yield f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{index}"
            if attention:
                yield f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{index}"
            yield f"output_blocks.{number}.{1 + attention}", f"up_blocks.{level}.upsamplers.0"


def renamed(
    state: dict[str, Tensor], found: Architecture, *, heads: Callable[[int], int], new_order: bool
) -> dict[str, Tensor]:
    """The tensors under our names. A name that has none keeps its own.

    Args:
        heads: channels -> heads of an attention over them.
        new_order: whether q, k and v are split before the heads (their use_new_attention_order).
    """
    modules, tensors = dict(found.modules()), {}
    for name, tensor in state.items():
        match = MODULE.fullmatch(name)
        if match is None or match[1] not in modules:
            tensors[name] = tensor
            continue
        layer, _, kind = match[2].rpartition(".")
        if layer == "qkv":
            for letter, part in zip("qkv", split_qkv(tensor, heads(len(tensor) // 3), new_order), strict=True):
                tensors[f"{modules[match[1]]}.to_{letter}.{kind}"] = part
        else:
            words = modules[match[1]], LAYERS.get(layer, layer), kind
            tensors[".".join(word for word in words if word)] = tensor
    return tensors


def split_qkv(tensor: Tensor, heads: int, new_order: bool) -> Tensor:
    """q, k and v (3, C, ...) of a joint projection (3·C, ...): [q k v] of all heads, or legacy, head by head."""
    channels = len(tensor) // 3
    if new_order:
        return tensor.reshape(3, channels, *tensor.shape[1:])
    by_head = tensor.reshape(heads, 3, channels // heads, *tensor.shape[1:])
    return by_head.transpose(0, 1).reshape(3, channels, *tensor.shape[1:])
