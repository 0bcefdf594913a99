"""Number formats are what they are called."""

import pytest
import torch

from ddpm.common.hardware import compute_dtype, default_device, precision_name


def test_float32_on_a_card_takes_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch begins
    compute_dtype("fp32", torch.device("cpu"))
    compute_dtype("bf16", torch.device("cuda"))
    assert torch.backends.cudnn.allow_tf32
    assert compute_dtype("fp32", torch.device("cuda")) == torch.float32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_the_name_of_a_number_format_gives_it_back(name):
    assert precision_name(compute_dtype(name, torch.device("cpu"))) == name


def test_auto_is_what_the_hardware_multiplies_in(monkeypatch):
    cuda, bf16 = torch.device("cuda", 0), torch.bfloat16
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), bf16), ((9, 0), bf16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert compute_dtype("auto", cuda) == dtype
    for has_bf16 in (False, True):
        monkeypatch.setattr("ddpm.common.hardware.cpu_has_bf16", lambda found=has_bf16: found)
        assert compute_dtype("auto", torch.device("cpu")) == (bf16 if has_bf16 else torch.float32)
        assert compute_dtype("auto", torch.device("mps")) == torch.float32


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert default_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert default_device() == torch.device("cuda", 3)
