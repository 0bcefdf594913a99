"""Write a model as model.onnx, its network with guidance inside, and model.json, all that a sampler has to know.

A sampler of another language needs no formula of this package: model.json lists the steps, and each is

    x_0  = the predicted x_0 from the network's output, x_t, alpha and sigma, clipped to [-1, 1]
    x_t' = x_t·step.x_t + x_0·step.x_0 + (x_0 of the step before)·step.x_0_last + noise·step.noise
"""

import copy
import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.common.errors import RunStopped, UserError, install, require
from ddpm.common.files import atomic_write, refuse_existing, user_path
from ddpm.common.names import VERSION
from ddpm.model import Model, SamplingOptions
from ddpm.networks.unet import Linear, UNet, Upsample, doubled
from ddpm.samplers.algorithms import Step
from ddpm.samplers.denoiser import Prediction

OLDEST_TORCH = (2, 9)  # whose exporter works with today's onnxscript
TOLERANCE = 1e-5  # between onnxruntime's output and ours, relative to outputs larger than 1
EXACT = 1e-9  # residual of a step that is linear in x_t, x_0, the last x_0 and the noise
GUIDANCES = (1.0, 2.5)  # that the check compares: off and on


def export_onnx(model: Model, folder: str | Path, options: SamplingOptions, *, overwrite: bool = False) -> float:
    """Write FOLDER/model.onnx and FOLDER/model.json.

    The network takes x_t float32 (N, C, H, W), t float32 (N,), for a class-conditional model labels int64 (N,), and if
    it has a null class also guidance, a float32 scalar. It returns `prediction` (N, C, H, W), and `variance` of the
    same shape if that is learned.

    Returns:
        The largest difference between onnxruntime's output and the network's, over several batch sizes.

    Raises:
        UserError: the model or the options cannot be exported, a package is missing, or a file exists.
        RunStopped: onnxruntime's output differs by more than 1e-5.
    """
    folder = checked_folder(folder, ("model.onnx", "model.json"), overwrite)
    graph, description, difference = onnx_model(model, options)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "model.onnx", graph)
    atomic_write(folder / "model.json", json.dumps(description, indent=1, ensure_ascii=False) + "\n")
    return difference


def checked_folder(folder: str | Path, names: Sequence[str], overwrite: bool) -> Path:
    """Return the folder to write in; UserError if it is a file, or holds one of the names and not `overwrite`."""
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
    for name in names:
        refuse_existing(folder / name, overwrite)
    return folder


def onnx_model(model: Model, options: SamplingOptions) -> tuple[bytes, dict[str, Any], float]:
    """Return the ONNX file, the content of model.json and the largest difference; see `export_onnx`."""
    check_packages()
    if not isinstance(model.network, UNet):
        raise UserError(f"only the U-Net of this package can be exported, not a {type(model.network).__name__}")
    description = describe(model, options.resolved(model))
    graph = network_graph(model)
    difference = largest_difference(model, graph)
    if not difference <= TOLERANCE:  # true for NaN, too
        raise RunStopped(f"onnxruntime's output differs from the network's by {difference:.1e}: nothing was written")
    return graph, description, difference


def check_packages() -> None:
    """Raise UserError if PyTorch is too old for an export, or a package is missing."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f"export needs PyTorch {needed} or newer, and this is {torch.__version__}: {install('export')}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export")


def describe(model: Model, options: SamplingOptions) -> dict[str, Any]:
    """Return the content of model.json; the options must be resolved."""
    return {
        "ddpm": VERSION,
        "weights": model.weights_hash,
        "image_shape": list(model.image_shape),
        "class_names": model.class_names,
        "null_label": model.null_label,
        "prediction": model.diffusion.prediction,
        "guidance": options.guidance,
        "sampler": options.sampler,
        "steps": sampling_plan(model, options),
    }


# --------------------------------------------------------------------------------------------- the sampler as a table


class _Probe:
    """A stand-in for a `Denoiser`: its n-th prediction of x_0 is the n-th unit vector after x_T's own."""

    def __init__(self, model: Model, units: Tensor):
        self.diffusion, self.schedule, self.units, self.calls = model.diffusion, model.diffusion.schedule, units, 0

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        x_0 = self.units[1 + self.calls]
        self.calls += 1
        return Prediction(x_0, self.diffusion.epsilon_from_x_0(x_0, x_t, t))


def sampling_plan(model: Model, options: SamplingOptions) -> list[dict[str, float]]:
    """Return every step of a sampler as numbers: t, alpha, sigma, and the weights of x_t, x_0, x_0_last and noise.

    The sampler itself tells the weights: it runs on unit vectors in place of images, so that every coordinate of the
    result is the weight of one prediction or noise.

    Raises UserError if a step is not of this form: two evaluations, a corrector, a learned variance, dynamic clipping.
    """
    impossible = UserError(f"the sampler {options.sampler} cannot be exported; ddim, dpm++ and dpm++sde can")
    if options.clip != "static":
        raise UserError(f"clip {options.clip or 'none'} cannot be exported; static can")
    if model.diffusion.learns_variance and options.sampler == "ancestral":
        raise impossible
    timesteps = options.timesteps(model)
    count = len(timesteps) - 1
    units = torch.eye(1 + 2 * count, dtype=torch.float64).reshape(-1, 1, 1, 1, 1 + 2 * count)
    x_t, probe, noises, steps = units[0], _Probe(model, units), iter(units[1 + count :]), list[Step]()
    options.spec(
        probe,  # type: ignore[arg-type]
        x_t,
        timesteps,
        noise=lambda: next(noises),
        callback=steps.append,
        **options.sampler_options,
    )
    if probe.calls != count:
        raise impossible
    plan, drawn = [], 0
    for step in steps:
        noise = torch.zeros_like(x_t)
        if bool(step.x_prev[..., 1 + count + drawn :].any()):
            noise, drawn = units[1 + count + drawn], drawn + 1
        last = units[step.index] if step.index else torch.zeros_like(x_t)
        parts = torch.stack([part.flatten() for part in (x_t, units[1 + step.index], last, noise)], dim=1)
        weights = torch.linalg.pinv(parts) @ step.x_prev.flatten()
        if float((parts @ weights - step.x_prev.flatten()).abs().max()) > EXACT:
            raise impossible
        alpha, sigma = model.diffusion.schedule.alpha_sigma(step.t)
        numbers = dict(zip(("x_t", "x_0", "x_0_last", "noise"), weights.tolist(), strict=True))
        plan.append({"t": step.t, "alpha": alpha, "sigma": sigma, **numbers})
        x_t = step.x_prev
    return plan


# ------------------------------------------------------------------------------------------------ the network as ONNX


def network_graph(model: Model) -> bytes:
    """Return the network of a model as an ONNX file, with classifier-free guidance if the model allows it."""
    import onnx

    network: Any = copy.deepcopy(model.network).cpu().float()
    for module in network.modules():  # two layers have ways that suit PyTorch on a CPU; a file takes the plain ones
        if isinstance(module, Upsample):
            module.forward = lambda x, *_, conv=module.conv: conv(doubled(x))  # type: ignore[method-assign]
        elif isinstance(module, Linear):
            module.forward = functools.partial(nn.Linear.forward, module)  # type: ignore[method-assign]
    batch = torch.export.Dim("batch")
    arguments: tuple[Tensor, ...] = (torch.zeros(2, *model.image_shape), torch.zeros(2))
    names = ["x_t", "t"]
    if model.class_names is not None:
        arguments, names = (*arguments, torch.zeros(2, dtype=torch.int64)), [*names, "labels"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        shapes = tuple({0: batch} for _ in arguments)
        traced = torch.export.export(network, arguments, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(traced, dynamo=True, input_names=names, output_names=["prediction"], verbose=False)
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    del graph.value_info[:]  # shapes that guidance changes
    for node in graph.node:  # where in which file each operation was written: nobody's business
        node.doc_string = ""
        del node.metadata_props[:]
    if model.diffusion.learns_variance:
        split_output(graph, model.image_shape[0])
    if model.null_label is not None:
        add_guidance(graph, model.null_label)
    halve_weights(graph)
    proto.doc_string = f"ddpm {VERSION}, weights {model.weights_hash}"
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def add_guidance(graph: Any, null_label: int) -> None:
    """Let a graph compute null + W·(class - null), Ho & Salimans 2022, with the scalar input `guidance` for W.

    The network runs on the batch alone if W is 1, and else on the batch twice, the second time with the null class.
    """
    from onnx import TensorProto, helper, numpy_helper

    inner = {tensor.name: f"network_{tensor.name}" for tensor in (*graph.input, *graph.output)}
    for inside in graph.node:
        inside.input[:] = [inner.get(name, name) for name in inside.input]
        inside.output[:] = [inner.get(name, name) for name in inside.output]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype), name)
        for name, value, dtype in (
            ("guidance_null", [null_label], np.int64),
            ("guidance_zero", [0], np.int64),
            ("guidance_off", 1, np.float32),
        )
    )

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=f"guidance/{output}", **attributes)

    before = [
        node("Shape", ["x_t"], "guidance_n", start=0, end=1),
        node("Equal", ["guidance", "guidance_off"], "guidance_is_off"),
        node("Not", ["guidance_is_off"], "guidance_is_on"),
        node("Cast", ["guidance_is_on"], "guidance_times", to=TensorProto.INT64),
        node("Mul", ["guidance_n", "guidance_times"], "guidance_more"),
        node("Add", ["guidance_n", "guidance_more"], "guidance_rows"),
        node("Expand", ["guidance_null", "guidance_n"], "guidance_nulls"),
    ]
    for name, second in (("x_t", "x_t"), ("t", "t"), ("labels", "guidance_nulls")):
        before += [
            node("Concat", [name, second], f"guidance_both_{name}", axis=0),
            node("Slice", [f"guidance_both_{name}", "guidance_zero", "guidance_rows"], inner[name]),
        ]
    whole = inner["prediction"]
    after = [
        node("Slice", [whole, "guidance_zero", "guidance_n"], "guidance_class"),
        node("Slice", [whole, "guidance_more", "guidance_rows"], "guidance_of_null"),
        node("Sub", ["guidance_class", "guidance_of_null"], "guidance_difference"),
        node("Mul", ["guidance_difference", "guidance"], "guidance_scaled"),
        node("Add", ["guidance_of_null", "guidance_scaled"], "prediction"),
    ]
    if "variance" in inner:  # guidance moves the mean; a learned variance stays the class's own
        after.append(node("Slice", [inner["variance"], "guidance_zero", "guidance_n"], "variance"))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("guidance", TensorProto.FLOAT, []))


def split_output(graph: Any, channels: int) -> None:
    """Make two outputs of a learned variance's (N, 2C, H, W): `prediction` and `variance`."""
    from onnx import TensorProto, helper

    for node in graph.node:
        node.output[:] = ["both" if name == "prediction" else name for name in node.output]
    graph.node.append(helper.make_node("Split", ["both"], ["prediction", "variance"], axis=1, num_outputs=2))
    dimensions = graph.output[0].type.tensor_type.shape.dim
    shape = [dimensions[0].dim_param, channels, *(dimension.dim_value for dimension in dimensions[2:])]
    del graph.output[:]
    names = ("prediction", "variance")
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names)


def halve_weights(graph: Any) -> None:
    """Store weights in half precision where that loses nothing, as in a model that was saved in half precision."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and np.array_equal(values, half := values.astype(np.float16)):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def largest_difference(model: Model, graph: bytes) -> float:
    """Run the ONNX file by onnxruntime, and the network; return how far apart they are, relative above 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    network = copy.deepcopy(model.network).cpu().float()
    generator, channels, largest = torch.Generator().manual_seed(0), model.image_shape[0], 0.0
    for count, guidance in ((count, guidance) for count in (1, 3) for guidance in GUIDANCES):
        x_t = torch.randn(count, *model.image_shape, generator=generator)
        t = torch.rand(count, generator=generator) * (len(model.diffusion.schedule) - 1)
        inputs, labels, null = {"x_t": x_t.numpy(), "t": t.numpy()}, None, None
        if model.class_names is not None:
            labels = torch.randint(len(model.class_names), (count,), generator=generator)
            inputs["labels"] = labels.numpy()
        if model.null_label is not None:
            null = torch.full((count,), model.null_label)
            inputs["guidance"] = np.array(guidance, np.float32)
        with torch.no_grad():
            expected = network(x_t, t, labels)
            if null is not None:
                of_null = network(x_t, t, null)
                expected[:, :channels] = (of_null + guidance * (expected - of_null))[:, :channels]
        found = np.concatenate(session.run(None, inputs), axis=1)
        scale = max(1.0, float(expected.abs().max()))
        largest = max(largest, float(np.abs(found - expected.numpy()).max()) / scale)
    return largest
