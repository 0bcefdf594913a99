"""Number formats are what they are called."""

import torch

from ddpm.common.hardware import compute_dtype


def test_float32_on_a_card_takes_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch begins
    compute_dtype("fp32", torch.device("cpu"))
    compute_dtype("bf16", torch.device("cuda"))
    assert torch.backends.cudnn.allow_tf32
    assert compute_dtype("fp32", torch.device("cuda")) == torch.float32
    assert not torch.backends.cudnn.allow_tf32
