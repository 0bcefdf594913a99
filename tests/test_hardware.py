"""Number formats are what they are called."""

import pytest
import torch

from ddpm.common.hardware import bf16_speedup, compute_dtype, cpu_prefers_bf16, default_device, precision_name


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
    for prefers in (False, True):
        monkeypatch.setattr("ddpm.common.hardware.cpu_prefers_bf16", lambda found=prefers: found)
        assert compute_dtype("auto", torch.device("cpu")) == (bf16 if prefers else torch.float32)
        assert compute_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("instructions", "speedup", "prefers"),
    [
        *[(True, 2.0, True), (False, 0.3, False)],  # as measured on such processors
        *[(True, 0.8, True), (False, 1.2, False)],  # the clock of a busy machine errs, and bits must not depend on it
        *[(True, 0.3, False), (False, 2.0, True)],  # kernels held to AVX2; instructions that PyTorch does not ask for
    ],
)
def test_only_a_clear_measurement_overrules_the_instructions(instructions, speedup, prefers, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr("ddpm.common.hardware.bf16_speedup", lambda: speedup)
    assert cpu_prefers_bf16() == prefers


def test_the_speed_of_bf16_is_measured_by_the_clock_and_once(monkeypatch):
    """The clock stands still but for bf16's convolutions of 1 s and float32's of 3 s."""
    now = 0.0

    def convolve(x, kernel, padding):
        nonlocal now
        now += 1.0 if x.dtype == kernel.dtype == torch.bfloat16 else 3.0
        assert torch.get_num_threads() == 1

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("torch.nn.functional.conv2d", convolve)
    bf16_speedup.cache_clear()
    torch.set_num_threads(3)
    state = torch.get_rng_state()
    assert bf16_speedup() == 3.0
    monkeypatch.undo()
    assert bf16_speedup() == 3.0  # not measured again
    bf16_speedup.cache_clear()
    assert 0 < bf16_speedup() < float("inf")
    assert torch.equal(torch.get_rng_state(), state), "the random numbers of the caller are not touched"
    assert torch.get_num_threads() == 3


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert default_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert default_device() == torch.device("cuda", 3)
