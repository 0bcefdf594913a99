"""Helpers of several restoration tests."""

from dataclasses import fields, replace

from ddpm.model import SamplingOptions
from ddpm.restoration import RestoreSettings, Task


def settings(name="denoise", noise=0.15, **options):
    task = {key: options.pop(key) for key in ("scale", "filter", "mask", "kernel") if key in options}
    plain = RestoreSettings(Task(name, **task), noise=noise, degrade=options.pop("degrade", True))
    return changed(plain, precision="fp32", **options)


def changed(settings, **options):
    """The settings with some fields, or some fields of their sampling options, changed."""
    own = {field.name for field in fields(RestoreSettings)}
    sampling = SamplingOptions.of(settings.sampling, **{k: v for k, v in options.items() if k not in own})
    return replace(settings, sampling=sampling, **{k: v for k, v in options.items() if k in own})
